#include "ops/ops.h"

#include <algorithm>

#include "base/error.h"

namespace conan {

const char* weight_format_name(WeightFormat format) {
  static const char* names[] = {"float32", "bfloat16", "float16", "int8"};
  return names[int(format)];
}

void require(const OperationTable& t) {
  const std::pair<const char*, bool> entries[] = {
      {"allocate", t.allocate}, {"release", t.release}, {"pack", t.pack},           {"for_rows", t.for_rows},   {"embed", t.embed},
      {"norm", t.norm},         {"linear", t.linear},   {"rope", t.rope},           {"attention", t.attention}, {"gather", t.gather},
      {"scatter", t.scatter},   {"pool", t.pool},       {"normalize", t.normalize}, {"unpack", t.unpack}};
  for (const auto& [name, present] : entries)
    if (!present) fail("BACKEND_UNSUPPORTED", "backend ", t.name, " has no operation \"", name, "\"");
}

void require_training(const OperationTable& t) {
  const std::pair<const char*, bool> entries[] = {{"repack", t.repack},
                                                  {"pack_transposed", t.pack_transposed},
                                                  {"narrow", t.narrow},
                                                  {"widen", t.widen},
                                                  {"norm_backward", t.norm_backward},
                                                  {"activate", t.activate},
                                                  {"activate_backward", t.activate_backward},
                                                  {"linear_backward", t.linear_backward},
                                                  {"attention_backward", t.attention_backward},
                                                  {"embed_backward", t.embed_backward},
                                                  {"pool_backward", t.pool_backward},
                                                  {"normalize_backward", t.normalize_backward},
                                                  {"contrast", t.contrast},
                                                  {"adamw", t.adamw},
                                                  {"squares", t.squares}};
  for (const auto& [name, present] : entries)
    if (!present) fail("BACKEND_UNSUPPORTED", "backend ", t.name, " has no operation \"", name, "\"");
}

bool is_reduced(WeightFormat format) { return format == WeightFormat::bf16 || format == WeightFormat::i8; }

int64_t padded_stride(int64_t cols) {
  const int64_t stride = (cols + 15) / 16 * 16;
  return stride % 512 == 0 ? stride + 16 : stride;
}

Floats::Floats(const OperationTable& table, int64_t size) : table_(&table), size_(size) {
  if (size == 0) return;
  data_ = static_cast<float*>(table.allocate(table, size_t(size) * sizeof(float)));
  std::fill_n(data_, size, 0.f);
}

Floats::~Floats() {
  if (data_) table_->release(*table_, data_, size_t(size_) * sizeof(float));
}

void clear(Context& context, const Matrix& x) {
  if (context.ops.clear) return context.ops.clear(context, x);
  for (int64_t i = 0; i < x.rows; ++i) std::fill_n(x.row(i), x.cols, 0.f);
}

void copy(Context& context, const Matrix& from, const Matrix& to) { context.ops.scatter(context, {from, to}); }

std::vector<float> values_of(Context& context, const Matrix& x) {
  std::vector<float> out(size_t(x.rows * x.cols));
  copy(context, x, {out.data(), x.rows, x.cols, x.cols});
  finish(context);
  return out;
}

std::unique_ptr<Arrival> bring(Context& context, const Matrix& x) {
  struct There : Arrival {
    std::vector<float> values;
    const float* wait() override { return values.data(); }
  };
  if (context.ops.bring) return context.ops.bring(context, x);
  auto out = std::make_unique<There>();
  out->values = values_of(context, x);
  return out;
}

Arena::~Arena() { release(); }

void Arena::release() {
  for (const Chunk& chunk : chunks_) table_.release(table_, chunk.memory, chunk.bytes);
  chunks_.clear();
}

void Arena::unite() {
  if (chunks_.size() < 2 || bytes() <= most_ + most_ / 2) return;
  release();
  ++moves_;
}

void* Arena::take(size_t bytes) {
  bytes = (bytes + 63) & ~size_t(63);
  while (chunk_ < chunks_.size() && used_ + bytes > chunks_[chunk_].bytes) ++chunk_, used_ = 0;
  if (chunk_ == chunks_.size()) {
    const size_t whole = chunks_.empty() ? most_ + most_ / 8 : 0;  // with room for passes to grow into
    const size_t size = std::max({bytes, whole, size_t(1) << 18});
    chunks_.push_back({static_cast<char*>(table_.allocate(table_, size)), size});
  }
  void* out = chunks_[chunk_].memory + used_;
  used_ += bytes;
  taken_ += bytes;
  most_ = std::max(most_, taken_);
  return out;
}

Matrix Arena::matrix(int64_t rows, int64_t cols) {
  const int64_t stride = padded_stride(cols);
  return {static_cast<float*>(take(size_t(rows * stride) * sizeof(float))), rows, cols, stride};
}

Matrix Arena::contiguous(int64_t rows, int64_t cols) { return {static_cast<float*>(take(size_t(rows * cols) * sizeof(float))), rows, cols, cols}; }

Bf16Matrix Arena::bf16_matrix(int64_t rows, int64_t cols) { return {static_cast<uint16_t*>(take(size_t(rows * cols) * 2)), rows, cols, cols}; }

size_t Arena::bytes() const {
  size_t total = 0;
  for (const Chunk& chunk : chunks_) total += chunk.bytes;
  return total;
}

Context::Context(const OperationTable& table, int thread_count) : ops(table), threads(thread_count), scratch(table) {
  for (int i = 1; i < threads; ++i) workers.push_back(std::make_unique<Context>(table, 1));
}

size_t Context::scratch_bytes() const {
  size_t total = scratch.bytes();
  for (const auto& worker : workers) total += worker->scratch_bytes();
  return total;
}

}  // namespace conan
