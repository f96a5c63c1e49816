#include "models/weights.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace conan {

namespace {
bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}
/// `path` is `name`, or ends with it after a dot.
bool names_module(const std::string& path, const std::string& name) { return path == name || ends_with(path, "." + name); }
}  // namespace

// ---- adapters

Adapter::Adapter(const std::string& directory) : directory_(directory), checkpoint_(directory, "adapter_model") {
  const std::string path = directory + "/adapter_config.json";
  const Json config = Json::parse(read_text_file(path), path);
  if (config["peft_type"].string() != "LORA")
    fail("CONFIG_INVALID", path, ": \"peft_type\": expected \"LORA\", got ", json_quote(config["peft_type"].string()));
  if (config["use_dora"].boolean()) fail("CONFIG_INVALID", path, ": \"use_dora\": expected false, DoRA is not supported");
  if (config["fan_in_fan_out"].boolean()) fail("CONFIG_INVALID", path, ": \"fan_in_fan_out\": expected false");
  if (!config["r"].is_integer() || config["r"].integer() <= 0) fail("CONFIG_INVALID", path, ": \"r\": expected a positive whole number");
  const bool rs = config["use_rslora"].boolean();

  for (const std::string& name : checkpoint_.names()) {
    static const std::string start = "base_model.model.";
    if (name.compare(0, start.size(), start) != 0)
      fail("TENSOR_UNUSED", directory, ": adapter tensor \"", name, "\": expected a name that starts with ", start);
    std::string module = name.substr(start.size());
    struct Kind {
      const char* end;
      bool a, embedding, replacement;
    };
    static const Kind kinds[] = {{".lora_A.weight", true, false, false},   {".lora_B.weight", false, false, false},
                                 {".lora_embedding_A", true, true, false}, {".lora_embedding_B", false, true, false},
                                 {".weight", false, false, true},          {".bias", false, false, true}};
    const Kind* kind = std::find_if(std::begin(kinds), std::end(kinds), [&](const Kind& k) { return ends_with(module, k.end); });
    if (kind == std::end(kinds)) fail("TENSOR_UNUSED", directory, ": adapter tensor \"", name, "\" is of no kind known here");
    module.resize(module.size() - std::string(kind->end).size());
    const TensorView* tensor = checkpoint_.find(name);
    if (kind->replacement) {  // modules_to_save and trained biases
      Module& m = modules_[module + kind->end];
      m.replacement = tensor;
      m.key = name;
      continue;
    }
    Module& m = modules_[module + ".weight"];
    (kind->a ? m.a : m.b) = tensor;
    m.embedding = kind->embedding;
    m.key = name;
    double r = double(config["r"].integer()), alpha = config["lora_alpha"].is_number() ? config["lora_alpha"].number() : 8;
    for (const auto& [pattern, value] : config["rank_pattern"].members())
      if (names_module(module, pattern)) r = value.number();
    for (const auto& [pattern, value] : config["alpha_pattern"].members())
      if (names_module(module, pattern)) alpha = value.number();
    m.scale = float(alpha / (rs ? std::sqrt(r) : r));
  }
  for (const auto& [module, m] : modules_) {
    if (m.replacement) continue;
    if (!m.a || !m.b) fail("TENSOR_MISSING", directory, ": adapter module \"", module, "\": expected both lora_A and lora_B");
    if (m.a->shape.size() != 2 || m.b->shape.size() != 2 || m.a->shape[0] != m.b->shape[1])
      fail("TENSOR_SHAPE", directory, ": adapter module \"", module, "\": lora_A ", shape_text(m.a->shape), " and lora_B ", shape_text(m.b->shape),
           " do not fit");
  }
}

Adapter::Module* Adapter::find(const std::string& name) {
  for (auto& [path, module] : modules_)
    if (names_module(path, name)) return &module;
  return nullptr;
}

bool Adapter::has(const std::string& name) const { return const_cast<Adapter*>(this)->find(name) != nullptr; }

bool Adapter::apply(const std::string& name, const std::vector<int64_t>& shape, std::vector<float>& values) {
  Module* m = find(name);
  if (!m) return false;
  m->used = true;
  if (m->replacement) {
    if (m->replacement->shape != shape)
      fail("TENSOR_SHAPE", directory_, ": adapter tensor \"", m->key, "\": expected ", shape_text(shape), ", got ",
           shape_text(m->replacement->shape));
    read_f32(*m->replacement, 0, m->replacement->size(), values.data());
    return true;
  }
  // lora_A [r, in], lora_B [out, r]; an embedding's weight is [in, out], its pair stands the other way round.
  const int64_t r = m->a->shape[0], in = m->a->shape[1], out = m->b->shape[0];
  const std::vector<int64_t> expected = m->embedding ? std::vector<int64_t>{in, out} : std::vector<int64_t>{out, in};
  if (shape != expected)
    fail("TENSOR_SHAPE", directory_, ": adapter module of \"", name, "\": expected a change of ", shape_text(shape), ", got ", shape_text(expected));
  std::vector<float> a(size_t(m->a->size())), b(size_t(m->b->size()));
  read_f32(*m->a, 0, m->a->size(), a.data());
  read_f32(*m->b, 0, m->b->size(), b.data());
  std::vector<double> row(static_cast<size_t>(in));
  for (int64_t o = 0; o < out; ++o) {
    std::fill(row.begin(), row.end(), 0);
    for (int64_t k = 0; k < r; ++k)
      for (int64_t i = 0; i < in; ++i) row[size_t(i)] += double(b[size_t(o * r + k)]) * a[size_t(k * in + i)];
    for (int64_t i = 0; i < in; ++i) values[size_t(m->embedding ? i * out + o : o * in + i)] += float(row[size_t(i)] * m->scale);
  }
  return true;
}

void Adapter::require_all_used() const {
  for (const auto& [path, module] : modules_)
    if (!module.used)
      fail("TENSOR_UNUSED", directory_, ": adapter tensor \"", module.key, "\" fits no tensor of the model (an adapter for another model?)");
}

// ---- the loader

WeightLoader::WeightLoader(const Checkpoint& checkpoint, std::vector<std::unique_ptr<Adapter>>& adapters, const std::string& probe,
                           std::vector<std::string>* problems)
    : checkpoint_(checkpoint), adapters_(adapters), problems_(problems) {
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
  if (problems_ || std::none_of(adapters_.begin(), adapters_.end(), [&](const auto& adapter) { return adapter->has(name); })) return tensor;
  merged_.push_back(std::make_unique<std::vector<float>>(size_t(tensor.size())));
  std::vector<float>& values = *merged_.back();
  read_f32(tensor, 0, tensor.size(), values.data());
  for (const auto& adapter : adapters_) adapter->apply(name, shape, values);
  return {values.data(), Dtype::f32, shape};
}

std::vector<float> WeightLoader::take_values(const std::string& name, const std::vector<int64_t>& shape, float offset) {
  const TensorView view = take(name, shape);
  std::vector<float> out(size_t(view.size()));
  if (problems_) return out;
  read_f32(view, 0, view.size(), out.data());
  for (float& x : out) {
    x += offset;
    if (!std::isfinite(x)) fail("WEIGHT_NOT_FINITE", checkpoint_.directory(), ": tensor \"", prefix_, name, "\" holds a NaN or an infinity");
  }
  return out;
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
  std::unique_ptr<Weight> weight = context.ops.pack(context, source, format);
  for (const TensorView& part : source.parts) checkpoint_.release(part);
  merged_.resize(before);
  return weight;
}

std::unique_ptr<Weight> WeightLoader::pack_slice(Context& context, const std::string& name, int64_t rows, int64_t cols, int64_t first, int64_t count,
                                                 WeightFormat format) {
  TensorView view = take(name + ".weight", {rows, cols});
  if (problems_) return std::make_unique<Weight>();
  view.data = static_cast<const char*>(view.data) + size_t(first * cols) * dtype_size(view.dtype);
  view.shape[0] = count;
  return context.ops.pack(context, {prefix_ + name, {view}, false}, format);
}

void WeightLoader::require_all_used(const std::string& layers) const {
  for (const std::string& name : unused()) {
    if (name.compare(0, prefix_.size() + layers.size(), prefix_ + layers) != 0 || ends_with(name, "rotary_emb.inv_freq")) continue;
    const std::string problem = text(checkpoint_.directory(), ": tensor \"", name, "\" has no place in the model that config.json describes");
    if (!problems_) throw Error("TENSOR_UNUSED", problem);
    problems_->push_back(problem);
  }
  if (problems_) return;
  for (const auto& adapter : adapters_) adapter->require_all_used();
}

std::vector<std::string> WeightLoader::unused() const {
  std::vector<std::string> out;
  for (const std::string& name : checkpoint_.names())
    if (!taken_.count(name)) out.push_back(name);
  return out;
}

}  // namespace conan
