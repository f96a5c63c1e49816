#include "train/parameters.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"

namespace conan::train {

namespace {

/// A number in [0, 1) for every element of a named tensor (splitmix64).
double uniform(uint64_t seed, const std::string& name, int64_t element) {
  uint64_t z = seed * 0x9e3779b97f4a7c15u;
  for (const char c : name) z = (z ^ uint8_t(c)) * 0x100000001b3u;
  z += uint64_t(element) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return double((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

Matrix matrix_of(std::span<float> values, int64_t rows, int64_t cols) { return {values.data(), rows, cols, cols}; }

/// A small tensor, or a part of one.
Matrix row_of(float* values, const ValuesPart& part) { return {values, 1, int64_t(part.count), int64_t(part.count)}; }

TensorView view_of(const float* values, int64_t rows, int64_t cols) { return {values, Dtype::f32, {rows, cols}}; }

/// y = x W^T, or with `add` y += it.
void multiply(Context& context, const Rows& x, const Weight& weight, const Matrix& y, bool add = false) {
  LinearArgs args;
  args.x = x.wide;
  if (weight.cols % 64 == 0) args.narrow_x = x.narrow;
  args.weight = &weight;
  args.y = y;
  if (add) args.residual = y;
  context.ops.linear(context, args);
}

void mask_columns(const LowRank& low, const Matrix& x) {
  for (int64_t i = 0; !low.mask.empty() && i < x.rows; ++i)
    for (int64_t c = 0; c < x.cols; ++c) x.row(i)[c] *= low.mask[size_t(c)];
}

}  // namespace

Parameters::Parameters(const TrainableOptions& options, const OperationTable& table)
    : low_rank_(options.low_rank), seed_(options.seed), dropout_(options.dropout), table_(table) {
  if (!(dropout_ >= 0 && dropout_ < 1)) fail("INVALID_OPTION", "LoRA: dropout: expected a number from 0 to below 1, got ", dropout_);
  for (const std::string& name : options.dense) dense_[name] = nullptr;
  for (size_t i = 0; i < low_rank_.size(); ++i) {
    if (low_rank_[i].rank < 1) fail("INVALID_OPTION", "LoRA: rank: expected at least 1, got ", low_rank_[i].rank);
    if (dense_.count(low_rank_[i].tensor))
      fail("INVALID_OPTION", "tensor \"", low_rank_[i].tensor, "\": expected to train whole or by LoRA, got both");
    low_rank_index_[low_rank_[i].tensor] = i;
  }
}

void Parameters::require_found() const {
  for (const auto& [name, parameter] : dense_)
    if (!parameter) fail("INVALID_OPTION", "trainable: tensor \"", name, "\": this model does not use it, or cannot train it");
  for (const LowRank& low : low_rank_)
    if (!low.a) fail("INVALID_OPTION", "trainable: tensor \"", low.tensor, "\": this model does not use it, or cannot train it");
  if (parameters_.empty()) fail("INVALID_OPTION", "trainable: expected at least one tensor to train, got none");
}

int64_t Parameters::count() const {
  int64_t total = 0;
  for (const auto& parameter : parameters_) total += parameter->size();
  return total;
}

Parameter* Parameters::dense(const std::string& name) const {
  const auto found = dense_.find(name);
  return found == dense_.end() ? nullptr : found->second;
}

const LowRank* Parameters::low_rank(const std::string& name) const {
  const auto found = low_rank_index_.find(name);
  return found == low_rank_index_.end() ? nullptr : &low_rank_[found->second];
}

Parameter* Parameters::add(const std::string& name, const std::vector<int64_t>& shape, bool decays) {
  parameters_.push_back(std::make_unique<Parameter>());
  Parameter& parameter = *parameters_.back();
  parameter.name = name;
  parameter.shape = shape;
  int64_t size = 1;
  for (int64_t n : shape) size *= n;
  // The last block of the kind, or a new one, twice as large: few blocks, and little that is not used.
  constexpr int64_t kStep = 16, kLeast = 1 << 16, kMost = 1 << 22;
  const auto last = std::find_if(blocks_.rbegin(), blocks_.rend(), [&](const Block& block) { return block.decays == decays; });
  Block* block = last == blocks_.rend() ? nullptr : &*last;
  if (!block || block->value.size() - block->used < size) {
    const int64_t room = std::max(size, block ? std::min(2 * block->value.size(), kMost) : kLeast);
    block = &blocks_.emplace_back(Block{Floats(table_, room), Floats(table_, room), Floats(table_, room), Floats(table_, room), 0, decays});
  }
  const auto part = [&](Floats& values) { return std::span(values.data() + block->used, size_t(size)); };
  parameter.value = part(block->value), parameter.gradient = part(block->gradient);
  parameter.first = part(block->first), parameter.second = part(block->second);
  block->used = std::min((block->used + size + kStep - 1) / kStep * kStep, block->value.size());
  return &parameter;
}

TensorView Parameters::use(const std::string& name, const TensorView& stored) {
  if (auto found = dense_.find(name); found != dense_.end()) {
    if (!found->second) {
      found->second = add(name, stored.shape, stored.shape.size() > 1);
      stored_[name] = stored;
      read_f32(stored, 0, stored.size(), found->second->value.data());
    }
    return {found->second->value.data(), Dtype::f32, stored.shape};
  }
  const auto index = low_rank_index_.find(name);
  if (index == low_rank_index_.end()) return stored;
  LowRank& low = low_rank_[index->second];
  if (stored.shape.size() != 2) fail("INVALID_OPTION", "LoRA: tensor \"", name, "\": expected a matrix, got ", shape_text(stored.shape));
  if (!low.a) {
    const std::string module = name.substr(0, name.size() - std::string(".weight").size());
    low.a = add(module + ".lora_A.weight", {low.rank, stored.shape[1]}, true);
    low.b = add(module + ".lora_B.weight", {stored.shape[0], low.rank}, true);
    const double bound = 1 / std::sqrt(double(stored.shape[1]));  // as PEFT: kaiming_uniform with a = sqrt(5)
    for (int64_t i = 0; i < low.a->size(); ++i) low.a->value[i] = float(bound * (2 * uniform(seed_, low.a->name, i) - 1));
    stored_[name] = stored;
  }
  // B begins at zero: the change is none.
  loading_.push_back(std::make_unique<std::vector<float>>(size_t(stored.size())));
  read_f32(stored, 0, stored.size(), loading_.back()->data());
  return {loading_.back()->data(), Dtype::f32, stored.shape};
}

WeightFormat Parameters::format(const WeightParts& parts, WeightFormat wanted) {
  // Values are kept in f32; products may be in 16 bits, as in mixed precision. Whole numbers are too coarse to move.
  for (const std::string& name : parts.names)
    if (trains(name) && wanted == WeightFormat::i8) return WeightFormat::f32;
  return wanted;
}

void Parameters::packed(Weight& weight, const WeightParts& parts, const WeightSource& source, const Checkpoint& checkpoint) {
  Use& use = uses_[&weight];
  use.weight = &weight;
  use.parts = parts;
  use.stored = source.parts;
  for (const std::string& name : parts.names) use.trains |= trains(name);
  for (const TensorView& part : source.parts) checkpoint.release(part);  // where it lies in a file: its pages have served
  loading_.clear();
}

void Parameters::taken(const Values& values, const ValuesPart& part) {
  SmallUse& use = small_[values.id()];
  use.values = values;
  use.parts.push_back(part);
  use.trains |= dense(part.name) != nullptr;
}

void Parameters::clear_gradients() {
  for (Block& block : blocks_) std::fill_n(block.gradient.data(), block.used, 0.f);
}

void Parameters::drop(Context& context, int64_t step) {
  if (dropout_ == 0 || low_rank_.empty()) return;
  for (LowRank& low : low_rank_) {
    low.mask.resize(size_t(low.a->shape[1]));
    const std::string name = text("dropout ", step, " ", low.tensor);
    for (size_t c = 0; c < low.mask.size(); ++c) low.mask[c] = uniform(seed_, name, int64_t(c)) < dropout_ ? 0 : float(1 / (1 - dropout_));
  }
  repack(context);
}

void Parameters::pull_back(Context& context, double anchor) {
  for (const auto& [name, parameter] : dense_) {
    Arena::Scope scope(context.scratch);
    const int64_t rows = parameter->shape.size() > 1 ? parameter->shape[0] : 1, cols = parameter->size() / rows;
    const TensorView& stored = kept(context, name);
    const Matrix apart = scaled(context, {stored.data, stored.dtype, {rows, cols}}, -1);
    context.ops.scatter(context, {matrix_of(parameter->value, rows, cols), apart, nullptr, true});
    context.ops.scatter(context,
                        {scaled(context, view_of(apart.data, rows, cols), float(anchor)), matrix_of(parameter->gradient, rows, cols), nullptr, true});
  }
  // |s B A|^2: s^2 (B^T B) A by A and s^2 B (A A^T) by B.
  for (const LowRank& low : low_rank_) {
    Arena::Scope scope(context.scratch);
    const int64_t r = low.rank, rows = low.b->shape[0], cols = low.a->shape[1];
    const float factor = float(anchor) * low.scale * low.scale;
    const Matrix a = matrix_of(low.a->value, r, cols), b = matrix_of(low.b->value, rows, r);
    const Matrix aa = context.scratch.contiguous(r, r), bb = context.scratch.contiguous(r, r);
    const Weight& packed = packed_.pack(context, a, WeightFormat::f32);
    multiply(context, a, packed, aa);
    clear(context, bb);
    context.ops.linear_backward(context, {b, b, bb});
    multiply(context, scaled(context, view_of(bb.data, r, r), factor), packed_.transposed(context, packed), matrix_of(low.a->gradient, r, cols),
             true);
    multiply(context, b, packed_.pack(context, scaled(context, view_of(aa.data, r, r), factor), WeightFormat::f32),
             matrix_of(low.b->gradient, rows, r), true);
  }
}

void Parameters::collect(Context& context) {
  for (auto& [id, use] : small_) {
    if (use.gradient.size() == 0) continue;
    for (const ValuesPart& part : use.parts)
      if (Parameter* parameter = dense(part.name))
        context.ops.scatter(context, {row_of(use.gradient.data() + part.at, part), row_of(parameter->gradient.data(), part), nullptr, true});
    clear(context, {use.gradient.data(), 1, use.gradient.size(), use.gradient.size()});
  }
}

Matrix Parameters::scaled(Context& context, const TensorView& x, float factor) {
  const Matrix out = context.scratch.contiguous(x.shape[0], x.shape[1]);
  for (auto row = int64_t(rows_.size()); row < out.rows; ++row) rows_.push_back(int32_t(row));
  EmbedArgs args;
  args.ids = rows_.data();
  args.table = &x;
  args.scale = factor;
  args.y = out;
  context.ops.embed(context, args);
  return out;
}

Matrix Parameters::scaled(Context& context, std::span<float> values, int64_t rows, int64_t cols, float factor) {
  return factor == 1 ? matrix_of(values, rows, cols) : scaled(context, view_of(values.data(), rows, cols), factor);
}

Matrix Parameters::scaled_a(Context& context, const LowRank& low) {
  if (low.mask.empty()) return scaled(context, low.a->value, low.rank, low.a->shape[1], low.scale);
  const Matrix a = scaled(context, view_of(low.a->value.data(), low.rank, low.a->shape[1]), low.scale);
  finish(context);
  mask_columns(low, a);
  return a;
}

const TensorView& Parameters::kept(Context& context, const std::string& name) {
  const TensorView& stored = stored_.at(name);
  if (const auto [found, fresh] = residents_.try_emplace(name); fresh) found->second = reside(context, stored.data, stored.bytes());
  return stored;
}

Matrix Parameters::effective(Context& context, const LowRank& low) {
  const TensorView& stored = kept(context, low.tensor);
  const Matrix out = scaled(context, stored, 1);
  const Weight& turned = packed_.transposed(context, packed_.pack(context, scaled_a(context, low), WeightFormat::f32));
  multiply(context, matrix_of(low.b->value, out.rows, low.rank), turned, out, true);
  return out;
}

WeightSource Parameters::source_of(Context& context, const Use& use, std::vector<float>& reordered) {
  WeightSource source{use.parts.names[0], {}, false};
  for (size_t i = 0; i < use.parts.names.size(); ++i) {
    const std::string& name = use.parts.names[i];
    const LowRank* low = low_rank(name);
    const bool packs_change = low && context.ops.packs_changes && low->mask.empty() && use.parts.channels == 0;
    if (context.ops.packs_changes) source.changes.emplace_back();
    const int64_t first = use.parts.first_of(i), rows = use.parts.rows[i], cols = use.parts.cols;
    if (packs_change) source.changes.back() = {low->a->value.data(), low->b->value.data() + first * low->rank, low->rank, low->scale};
    if (const Parameter* parameter = dense(name)) source.parts.push_back(view_of(parameter->value.data() + first * cols, rows, cols));
    else if (packs_change) source.parts.push_back(kept(context, low->tensor).rows(first, rows));
    else if (low) source.parts.push_back(view_of(effective(context, *low).row(first), rows, cols));
    else source.parts.push_back(use.stored[i]);
  }
  if (use.parts.channels > 0) {
    const int64_t rows = use.parts.rows[0], cols = use.parts.cols;
    std::vector<float> stored(size_t(rows * cols));
    finish(context);
    read_f32(source.parts[0], 0, rows * cols, stored.data());
    reordered = reorder_taps(stored.data(), rows, cols, use.parts.channels, false);
    source.parts[0] = view_of(reordered.data(), rows, cols);
  }
  return source;
}

void Parameters::repack(Context& context) {
  for (auto& [weight, use] : uses_) {
    if (!use.trains) continue;
    Arena::Scope scope(context.scratch);
    std::vector<float> reordered;
    context.ops.repack(context, source_of(context, use, reordered), *use.weight);
  }
}

void Parameters::refresh(Context& context) {
  for (LowRank& low : low_rank_) low.mask.clear();
  repack(context);
  const auto each = [&](const auto& visit) {
    for (auto& [id, use] : small_)
      for (const ValuesPart& part : use.parts)
        if (Parameter* parameter = use.trains ? dense(part.name) : nullptr) visit(use.values.data() + part.at, part, *parameter);
  };
  each([&](float* values, const ValuesPart& part, Parameter& parameter) {
    copy(context, row_of(parameter.value.data(), part), row_of(values, part));
  });
  finish(context);
  each([](float* values, const ValuesPart& part, Parameter&) {
    for (size_t i = 0; part.offset != 0 && i < part.count; ++i) values[i] += part.offset;
  });
}

bool Parameters::wants(const Weight& weight) const {
  const auto found = uses_.find(&weight);
  return found != uses_.end() && found->second.trains;
}

bool Parameters::wants(const Values& values) const {
  const auto found = values.empty() ? small_.end() : small_.find(values.id());
  return found != small_.end() && found->second.trains;
}

bool Parameters::wants(const TensorView& table) const {
  return table.data &&
         std::any_of(dense_.begin(), dense_.end(), [&](const auto& entry) { return entry.second && entry.second->value.data() == table.data; });
}

void Parameters::linear(Context& context, const Weight& weight, const Values& bias, const Rows& dy, const Rows& x) {
  const auto found = uses_.find(&weight);
  if (float* gradient = values(bias)) context.ops.linear_backward(context, {dy.wide, {}, {}, gradient, false, dy.narrow});
  if (found == uses_.end() || !found->second.trains) return;
  const bool reduced = is_reduced(weight.format);
  int64_t first = 0;
  LowRankBackwardArgs together{dy.narrow, x.narrow, {}};
  for (size_t i = 0; i < found->second.parts.names.size(); ++i) {
    const WeightParts& parts = found->second.parts;
    const int64_t rows = parts.rows[i], cols = parts.cols, channels = parts.channels, row = parts.first_of(i);
    const Rows own = dy.columns(first, rows);
    const std::string& name = parts.names[i];
    if (const LowRank* low = low_rank(name)) {
      // Parts of one tensor share its A: together, one would add to what another is adding to.
      if (context.ops.low_rank_backward && reduced && channels == 0 && parts.first.empty() && low->mask.empty() &&
          LowRankBackwardArgs::fits(dy.narrow, x.narrow, first, rows, low->rank))
        together.parts.push_back(
            {first, rows, low->rank, low->scale, low->a->value.data(), low->b->value.data(), low->a->gradient.data(), low->b->gradient.data()});
      else low_rank_gradient(context, *low, row, own, x, channels, reduced);
    }
    Parameter* parameter = dense(name);
    first += rows;
    if (!parameter) continue;
    LinearBackwardArgs args{own.wide, x.wide, {}, nullptr, reduced, own.narrow, x.narrow};
    if (channels > 0) {
      add_reordered(context, args, channels, nullptr, *parameter);
    } else {
      args.dw = matrix_of(parameter->gradient.subspan(size_t(row * cols)), rows, cols);
      context.ops.linear_backward(context, args);
    }
  }
  if (!together.parts.empty()) context.ops.low_rank_backward(context, together);
}

/// With t = x (scale A)^T and u = dy (scale B): dB += dy^T t, dA += u^T x.
void Parameters::low_rank_gradient(Context& context, const LowRank& low, int64_t first, const Rows& dy, const Rows& x, int64_t channels,
                                   bool reduced) {
  Arena::Scope scope(context.scratch);
  const int64_t rows = dy.cols(), cols = x.cols(), T = x.rows();
  const Matrix t = context.scratch.matrix(T, low.rank), u = context.scratch.matrix(T, low.rank);
  const WeightFormat format = reduced ? WeightFormat::bf16 : WeightFormat::f32;
  const Matrix a = scaled_a(context, low), b = scaled(context, low.b->value.subspan(size_t(first * low.rank)), rows, low.rank, low.scale);
  std::vector<float> reordered;
  if (channels > 0) {
    finish(context);
    reordered = reorder_taps(a.data, low.rank, cols, channels, false);
  }
  multiply(context, x, packed_.pack(context, channels > 0 ? matrix_of(reordered, low.rank, cols) : a, format), t);
  multiply(context, dy, packed_.transposed(context, packed_.pack(context, b, format)), u);
  context.ops.linear_backward(
      context, {dy.wide, t, matrix_of(low.b->gradient.subspan(size_t(first * low.rank)), rows, low.rank), nullptr, reduced, dy.narrow});
  if (channels > 0 || !low.mask.empty()) add_reordered(context, {u, x.wide, {}, nullptr, reduced, {}, x.narrow}, channels, &low, *low.a);
  else context.ops.linear_backward(context, {u, x.wide, matrix_of(low.a->gradient, low.rank, cols), nullptr, reduced, {}, x.narrow});
}

/// The gradient of a matrix whose columns are not those of x: in the order of files, and of what is masked.
void Parameters::add_reordered(Context& context, LinearBackwardArgs args, int64_t channels, const LowRank* low, Parameter& parameter) {
  const int64_t rows = args.narrow_dy.data ? args.narrow_dy.cols : args.dy.cols, cols = args.narrow_x.data ? args.narrow_x.cols : args.x.cols;
  std::vector<float> own(size_t(rows * cols));
  args.dw = matrix_of(own, rows, cols);
  context.ops.linear_backward(context, args);
  finish(context);
  if (channels > 0) own = reorder_taps(own.data(), rows, cols, channels, true);
  if (low) mask_columns(*low, matrix_of(own, rows, cols));
  for (int64_t i = 0; i < parameter.size(); ++i) parameter.gradient[i] += own[size_t(i)];
}

float* Parameters::values(const Values& values) {
  if (!wants(values)) return nullptr;
  SmallUse& use = small_.at(values.id());
  if (use.gradient.size() == 0) use.gradient = Floats(table_, int64_t(values.size()));
  return use.gradient.data();
}

Matrix Parameters::table(const TensorView& table) {
  for (const auto& [name, parameter] : dense_)
    if (parameter && parameter->value.data() == table.data) return matrix_of(parameter->gradient, table.shape[0], table.shape[1]);
  return {};
}

}  // namespace conan::train
