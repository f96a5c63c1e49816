#include "merge/job.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/thread_pool.h"

namespace conan::merge {

namespace {
constexpr int64_t kChunk = 1 << 18;  // elements
}

void Job::divide(bool whole_rows) {
  size_ = 1;
  for (int64_t d : shape) size_ *= d;
  cols_ = shape.empty() ? 1 : std::max<int64_t>(1, shape.back());
  chunk_ = kChunk;
  if (whole_rows) chunk_ = std::max<int64_t>(1, kChunk / (8 * cols_)) * 8 * cols_;
  chunks_ = (size_ + chunk_ - 1) / chunk_;
}

double Job::number(const char* key, double otherwise) const { return (*options)[key].is_number() ? (*options)[key].number() : otherwise; }
bool Job::flag(const char* key, bool otherwise) const {
  return (*options)[key].kind() == Json::Kind::boolean ? (*options)[key].boolean() : otherwise;
}

void Job::for_chunks(const std::function<void(int64_t, int64_t, int64_t, Workspace&)>& body) const {
  WorkQueue queue(chunks_);
  ThreadPool::instance().run(int(std::min<int64_t>(threads, std::max<int64_t>(1, chunks_))), [&](int worker) {
    for (int64_t chunk; queue.next(chunk);) {
      if (check) (*check)();
      const int64_t first = chunk * chunk_;
      body(chunk, first, std::min(chunk_, size_ - first), (*workspaces)[size_t(worker)]);
    }
  });
}

void Job::load(Block& block, Workspace& workspace) const {
  float* buffer = workspace.take(int64_t(parents.size() + 1) * kBlock);
  block.base = nullptr;
  if (base) base->read(block.first, block.n, block.base = buffer);
  block.x.resize(parents.size());
  for (size_t p = 0; p < parents.size(); ++p) parents[p].source->read(block.first, block.n, block.x[p] = buffer + (p + 1) * kBlock);
  workspace.doubles.resize(size_t(kBlock));
  block.out = workspace.doubles.data();
}

std::vector<double> Job::scan(size_t count, const std::function<void(Block&, Workspace&, double*)>& body) const {
  std::vector<double> partial(size_t(chunks_) * count), sums(count);
  for_chunks([&](int64_t chunk, int64_t first, int64_t elements, Workspace& workspace) {
    Block block;
    block.chunk = chunk;
    for (int64_t done = 0; done < elements; done += kBlock) {
      block.first = first + done;
      block.n = std::min(kBlock, elements - done);
      load(block, workspace);
      body(block, workspace, partial.data() + size_t(chunk) * count);
    }
  });
  for (int64_t chunk = 0; chunk < chunks_; ++chunk)
    for (size_t i = 0; i < count; ++i) sums[i] += partial[size_t(chunk) * count + i];
  return sums;
}

void Job::produce_block(Block& block, Workspace& workspace, double* sums, void* out, const std::function<void(Block&, Workspace&)>& body) {
  const Kernels& k = kernels();
  load(block, workspace);
  if (block.base) {
    float high[kBlock], low[kBlock];
    std::fill(high, high + block.n, 0.f);
    std::fill(low, low + block.n, 0.f);
    for (size_t p = 0; p < parents.size(); ++p) sums[p] += k.observe(block.x[p], block.base, block.n, high, low);
    sums[parents.size()] += double(k.count_conflicts(high, low, block.n));
  } else {
    for (size_t p = 0; p < parents.size(); ++p) sums[p] += k.sum_squares(block.x[p], nullptr, block.n);
  }
  body(block, workspace);
  if (!patches.empty()) patch(block.first, block.n, block.out);
  k.narrow(dtype, block.out, block.n, out);
}

void Job::finish(const std::vector<double>& partial) {
  const size_t count = parents.size() + 1;
  std::vector<double> sums(count);
  for (int64_t chunk = 0; chunk < chunks_; ++chunk)
    for (size_t i = 0; i < count; ++i) sums[i] += partial[size_t(chunk) * count + i];
  require_finite(sums);
  statistics.norms.clear();
  for (size_t p = 0; p < parents.size(); ++p) statistics.norms.push_back(std::sqrt(sums[p]));
  statistics.conflicts = size_ ? sums[parents.size()] / double(size_) : 0;
}

void Job::produce(const std::function<void(Block&, Workspace&)>& body) {
  const size_t count = parents.size() + 1, element = dtype_size(dtype);
  std::vector<double> partial(size_t(chunks_) * count);
  for_chunks([&](int64_t chunk, int64_t first, int64_t elements, Workspace& workspace) {
    workspace.bytes.resize(size_t(elements) * element);
    Block block;
    block.chunk = chunk;
    for (int64_t done = 0; done < elements; done += kBlock) {
      block.first = first + done;
      block.n = std::min(kBlock, elements - done);
      produce_block(block, workspace, partial.data() + size_t(chunk) * count, workspace.bytes.data() + size_t(done) * element, body);
    }
    sink->write(first * int64_t(element), workspace.bytes.data(), int64_t(workspace.bytes.size()));
  });
  finish(partial);
}

const uint16_t* Job::stored_bf16(const Source* source) {
  const TensorView* stored = source ? source->stored() : nullptr;
  return stored && stored->dtype == Dtype::bf16 ? static_cast<const uint16_t*>(stored->data) : nullptr;
}

/// The same as kernels().stream_bf16, on the device.
void Job::merge_there(const Stream& stream, int64_t first, int64_t count, uint16_t* out, double* sums) const {
  const uint16_t* x[Stream::kMaxParents];
  for (size_t p = 0; p < parents.size(); ++p) x[p] = stored_bf16(parents[p].source) + first;
  MergeArgs args;
  args.parents = int(parents.size());
  args.base = base ? stored_bf16(base) + first : nullptr;
  args.x = x;
  args.coefficients = stream.coefficients, args.weights = stream.weights;
  args.from = stream.from, args.to = stream.to;
  args.elect = stream.elect, args.normalize = stream.normalize, args.scale = stream.scale;
  args.out = out, args.sums = sums, args.count = count;
  device->ops.merge(*device, args);
}

bool Job::produce_stream(const Stream& stream, const std::function<bool(Stream&, const Block&, Workspace&)>& open,
                         const std::function<void(Block&, Workspace&)>& body) {
  if (dtype != Dtype::bf16 || !patches.empty() || parents.size() > size_t(Stream::kMaxParents) || (base && !stored_bf16(base))) return false;
  for (const Parent& parent : parents)
    if (!stored_bf16(parent.source)) return false;
  const size_t count = parents.size() + 1;
  std::vector<double> partial(size_t(chunks_) * count);
  for_chunks([&](int64_t chunk, int64_t first, int64_t elements, Workspace& workspace) {
    double* sums = partial.data() + size_t(chunk) * count;
    workspace.bytes.resize(size_t(elements) * 2);
    uint16_t* out = reinterpret_cast<uint16_t*>(workspace.bytes.data());
    const uint16_t* x[Stream::kMaxParents];
    Stream s = stream;
    s.parents = int(parents.size());
    s.x = x;
    s.squares = sums;
    Block block;
    block.chunk = chunk;
    // Blocks whose ranges are the same go to a device together.
    std::vector<uint32_t> ranges, own;
    int64_t begin = 0, end = 0;
    const auto hand_over = [&] {
      Stream together = stream;
      if (!ranges.empty()) together.from = ranges.data(), together.to = ranges.data() + parents.size();
      if (end > begin) merge_there(together, first + begin, end - begin, out + begin, sums);
      begin = end;
    };
    for (int64_t done = 0; done < elements; done += kBlock) {
      block.first = first + done;
      block.n = std::min(kBlock, elements - done);
      // Whole vectors only; the end of a tensor that is none, and blocks that are not a range, go the long way.
      const int64_t whole = open(s, block, workspace) ? block.n / 32 * 32 : 0;
      if (whole && device) {
        own.clear();
        if (s.from) own.assign(s.from, s.from + parents.size()), own.insert(own.end(), s.to, s.to + parents.size());
        if (end < done || own != ranges) hand_over(), begin = done, ranges = own;
        end = done + whole;
      } else if (whole) {
        s.base = base ? stored_bf16(base) + block.first : nullptr;
        for (size_t p = 0; p < parents.size(); ++p) x[p] = stored_bf16(parents[p].source) + block.first;
        s.out = out + done;
        kernels().stream_bf16(s, whole);
      }
      if (whole == block.n) continue;
      block.first += whole;
      block.n -= whole;
      produce_block(block, workspace, sums, out + done + whole, body);
    }
    hand_over();
    sums[parents.size()] += double(s.conflicts);
    sink->write(first * 2, workspace.bytes.data(), int64_t(workspace.bytes.size()));
  });
  finish(partial);
  return true;
}

void Job::patch(int64_t first, int64_t count, double* values) const {
  std::vector<float> copied;
  for (const RowPatch& row : patches) {
    const int64_t begin = row.row * cols_, from = std::max(first, begin), to = std::min(first + count, begin + cols_);
    if (from >= to) continue;
    copied.resize(size_t(to - from));
    row.source->read(row.source_row * cols_ + (from - begin), to - from, copied.data());
    std::copy(copied.begin(), copied.end(), values + (from - first));
  }
}

/// A sum of squares that is not finite may only be large: look before blaming.
void Job::require_finite(const std::vector<double>& sums) const {
  for (size_t p = 0; p < parents.size(); ++p) {
    if (std::isfinite(sums[p])) continue;
    for (const Source* source : {parents[p].source, base}) {
      if (!source) continue;
      std::vector<float> values(size_t(std::min(size_, kChunk)));
      for (int64_t first = 0; first < size_; first += kChunk) {
        const int64_t n = std::min(kChunk, size_ - first);
        source->read(first, n, values.data());
        for (int64_t i = 0; i < n; ++i)
          if (!std::isfinite(values[size_t(i)]))
            fail("WEIGHT_NOT_FINITE", source->subject(), ": expected finite weights, got ", values[size_t(i)], " at element ", first + i);
      }
    }
  }
}

void Job::copy(const Source& source) {
  parents = {{&source}};
  base = nullptr;
  const TensorView* stored = source.stored();
  const bool floats = source.dtype() == Dtype::f32 || source.dtype() == Dtype::bf16 || source.dtype() == Dtype::f16;
  if (floats && (!patches.empty() || !stored || stored->dtype != dtype)) {
    produce([](Block& block, Workspace&) { std::copy(block.x[0], block.x[0] + block.n, block.out); });
    return;
  }
  if (!stored || stored->dtype != dtype)
    fail("UNSUPPORTED_DTYPE", source.subject(), ": expected ", dtype_name(dtype), ", got ", dtype_name(source.dtype()));
  const size_t element = dtype_size(dtype);
  std::vector<double> partial(size_t(chunks_) * 2);
  for_chunks([&](int64_t chunk, int64_t first, int64_t count, Workspace& workspace) {
    float* values = workspace.take(kBlock);
    for (int64_t done = 0; floats && done < count; done += kBlock) {
      const int64_t n = std::min(kBlock, count - done);
      source.read(first + done, n, values);
      partial[size_t(chunk) * 2] += kernels().sum_squares(values, nullptr, n);
    }
    sink->write(first * int64_t(element), static_cast<const char*>(stored->data) + size_t(first) * element, count * int64_t(element));
  });
  finish(partial);
  statistics = {};
}

}  // namespace conan::merge
