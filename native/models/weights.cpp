#include "models/weights.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace conan {

namespace {
bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}
}  // namespace

WeightLoader::WeightLoader(const Checkpoint& checkpoint, std::vector<std::unique_ptr<Adapter>>& adapters, const std::string& probe,
                           std::vector<std::string>* problems, WeightObserver* observer)
    : checkpoint_(checkpoint), adapters_(adapters), problems_(problems), observer_(observer) {
  std::vector<std::string> found;
  for (const std::string& name : checkpoint.names())
    if (names_module(name, probe)) found.push_back(name);
  if (found.empty()) fail("TENSOR_MISSING", checkpoint.directory(), ": expected a tensor \"", probe, "\" (any prefix), found none");
  if (found.size() > 1)
    fail("CONFIG_INVALID", checkpoint.directory(), ": tensors \"", found[0], "\" and \"", found[1], "\" could both be this model's \"", probe, "\"");
  prefix_ = found[0].substr(0, found[0].size() - probe.size());
}

TensorView WeightLoader::checked(const std::string& full, const std::vector<int64_t>& shape) {
  const TensorView* tensor = checkpoint_.find(full);
  taken_.insert(full);
  try {
    if (!tensor) fail("TENSOR_MISSING", checkpoint_.directory(), ": tensor \"", full, "\": expected ", shape_text(shape), ", found none");
    if (tensor->shape != shape)
      fail("TENSOR_SHAPE", checkpoint_.directory(), ": tensor \"", full, "\": expected ", shape_text(shape), ", got ", shape_text(tensor->shape));
    if (tensor->dtype != Dtype::f32 && tensor->dtype != Dtype::bf16 && tensor->dtype != Dtype::f16)
      fail("UNSUPPORTED_DTYPE", checkpoint_.directory(), ": tensor \"", full, "\": expected float32, bfloat16 or float16, got ",
           dtype_name(tensor->dtype));
  } catch (const Error& error) {
    if (!problems_) throw;
    problems_->push_back(error.what());
    return {nullptr, Dtype::f32, shape};
  }
  return *tensor;
}

TensorView WeightLoader::take(const std::string& name, const std::vector<int64_t>& shape) {
  std::string full = prefix_ + name;
  if (!checkpoint_.find(full) && (ends_with(name, "LayerNorm.weight") || ends_with(name, "LayerNorm.bias"))) {
    const bool weight = ends_with(name, "weight");  // BERT as converted from TensorFlow says gamma and beta
    const std::string old = full.substr(0, full.size() - (weight ? 6 : 4)) + (weight ? "gamma" : "beta");
    if (checkpoint_.find(old)) full = old;
  }
  const TensorView tensor = checked(full, shape);
  if (problems_) return tensor;
  if (observer_)
    if (const TensorView other = observer_->use(full, tensor); other.data != tensor.data) return other;
  if (std::none_of(adapters_.begin(), adapters_.end(), [&](const auto& adapter) { return adapter->has(name); })) return tensor;
  merged_.push_back(std::make_unique<std::vector<float>>(size_t(tensor.size())));
  std::vector<float>& values = *merged_.back();
  read_f32(tensor, 0, tensor.size(), values.data());
  for (const auto& adapter : adapters_)
    if (const auto change = adapter->take(name, shape)) change->apply(0, tensor.size(), values.data());
  return {values.data(), Dtype::f32, shape};
}

Values WeightLoader::take_values(const std::string& name, const std::vector<int64_t>& shape, float offset) {
  Values values;
  append_values(values, name, shape, offset);
  return values;
}

void WeightLoader::append_values(Values& values, const std::string& name, const std::vector<int64_t>& shape, float offset) {
  const TensorView view = take(name, shape);
  std::vector<float>& out = values.storage();
  small_[values.id()] = values;
  const size_t at = out.size(), count = size_t(view.size());
  out.resize(at + count);
  if (problems_) return;
  read_f32(view, 0, view.size(), out.data() + at);
  for (size_t i = at; i < out.size(); ++i) {
    out[i] += offset;
    if (!std::isfinite(out[i])) fail("WEIGHT_NOT_FINITE", checkpoint_.directory(), ": tensor \"", prefix_, name, "\" holds a NaN or an infinity");
  }
  if (observer_) observer_->taken(values, {prefix_ + name, at, count, offset});
}

void WeightLoader::reside(Context& context, std::vector<Resident>& residents) const {
  for (const auto& [id, values] : small_) {
    if (observer_ && observer_->wants(values)) continue;
    if (Resident copy = conan::reside(context, values.data(), values.size() * sizeof(float))) residents.push_back(std::move(copy));
  }
}

TensorView WeightLoader::take_head(const std::vector<int64_t>& shape) { return checked("lm_head.weight", shape); }

std::unique_ptr<Weight> WeightLoader::pack(Context& context, const std::vector<std::string>& names, const std::vector<int64_t>& rows, int64_t cols,
                                           WeightFormat format, bool gated) {
  WeightSource source;
  source.gated = gated;
  const size_t before = merged_.size();
  for (size_t i = 0; i < names.size(); ++i) {
    const std::string name = names[i] + ".weight";
    source.name += (i ? " + " : "") + prefix_ + name;
    source.parts.push_back(take(name, {rows[i], cols}));
  }
  if (problems_) return std::make_unique<Weight>();
  WeightParts parts{{}, rows, cols};
  for (const std::string& name : names) parts.names.push_back(prefix_ + name + ".weight");
  return pack(context, source, parts, format, before);
}

std::unique_ptr<Weight> WeightLoader::pack(Context& context, const WeightSource& source, const WeightParts& parts, WeightFormat format,
                                           size_t merged) {
  std::unique_ptr<Weight> weight = context.ops.pack(context, source, observer_ ? observer_->format(parts, format) : format);
  if (observer_) observer_->packed(*weight, parts, source, checkpoint_);
  for (const TensorView& part : source.parts) checkpoint_.release(part);
  merged_.resize(merged);
  return weight;
}

std::unique_ptr<Weight> WeightLoader::pack_swapped(Context& context, const std::string& name, int64_t half, int64_t cols, WeightFormat format,
                                                   bool gated) {
  const size_t before = merged_.size();
  const TensorView view = take(name + ".weight", {2 * half, cols});
  if (problems_) return std::make_unique<Weight>();
  const std::string full = prefix_ + name + ".weight";
  return pack(context, {full, {view.rows(half, half), view.rows(0, half)}, gated}, {{full, full}, {half, half}, cols, 0, {half, 0}}, format, before);
}

std::unique_ptr<Weight> WeightLoader::pack_slice(Context& context, const std::string& name, int64_t rows, int64_t cols, int64_t first, int64_t count,
                                                 WeightFormat format) {
  const TensorView view = take(name + ".weight", {rows, cols});
  if (problems_) return std::make_unique<Weight>();
  return context.ops.pack(context, {prefix_ + name, {view.rows(first, count)}, false}, format);
}

std::unique_ptr<Weight> WeightLoader::pack_view(Context& context, const std::string& name, const TensorView& view, WeightFormat format) {
  if (problems_) return std::make_unique<Weight>();
  const WeightParts parts{{prefix_ + name}, {view.shape[0]}, view.shape[1], 0};
  std::unique_ptr<Weight> weight = context.ops.pack(context, {prefix_ + name, {view}, false}, observer_ ? observer_->format(parts, format) : format);
  if (observer_) observer_->packed(*weight, parts, {prefix_ + name, {view}, false}, checkpoint_);
  return weight;
}

std::vector<float> reorder_taps(const float* values, int64_t rows, int64_t cols, int64_t channels, bool back) {
  std::vector<float> out(size_t(rows * cols));
  const int64_t taps = cols / channels;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t k = 0; k < taps; ++k) {
        const int64_t stored = r * cols + c * taps + k, packed = r * cols + k * channels + c;
        out[size_t(back ? stored : packed)] = values[back ? packed : stored];
      }
  return out;
}

std::unique_ptr<Weight> WeightLoader::pack_convolution(Context& context, const std::string& name, const std::vector<int64_t>& shape, int64_t channels,
                                                       WeightFormat format) {
  TensorView view = take(name + ".weight", shape);
  const int64_t rows = shape[0], cols = view.size() / rows;
  if (problems_) return std::make_unique<Weight>();
  std::vector<float> stored(size_t(view.size()));
  read_f32(view, 0, view.size(), stored.data());
  const std::vector<float> values = reorder_taps(stored.data(), rows, cols, channels, false);
  WeightParts parts{{prefix_ + name + ".weight"}, {rows}, cols, channels};
  const WeightSource source{parts.names[0], {{values.data(), Dtype::f32, {rows, cols}}}, false};
  std::unique_ptr<Weight> weight = context.ops.pack(context, source, observer_ ? observer_->format(parts, format) : format);
  view.shape = {rows, cols};
  if (observer_) observer_->packed(*weight, parts, {parts.names[0], {view}, false}, checkpoint_);
  return weight;
}

void WeightLoader::require_all_used(const std::string& layers) const {
  for (const std::string& name : unused()) {
    if (name.compare(0, prefix_.size() + layers.size(), prefix_ + layers) != 0 || ends_with(name, "rotary_emb.inv_freq")) continue;
    const std::string problem = text(checkpoint_.directory(), ": tensor \"", name, "\" has no place in the model that config.json describes");
    if (!problems_) throw Error("TENSOR_UNUSED", problem);
    problems_->push_back(problem);
  }
}

std::vector<std::string> WeightLoader::unused() const {
  std::vector<std::string> out;
  for (const std::string& name : checkpoint_.names())
    if (!taken_.count(name)) out.push_back(name);
  return out;
}

}  // namespace conan
