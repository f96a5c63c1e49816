#include "base/adapter.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace conan {

namespace {
bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}
}  // namespace

bool names_module(const std::string& path, const std::string& name) { return path == name || ends_with(path, "." + name); }

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
  for (auto& [path, module] : modules_)  // an adapter made for the model without the head that the checkpoint's names count in
    if (names_module(name, path)) return &module;
  return nullptr;
}

bool Adapter::has(const std::string& name) const { return const_cast<Adapter*>(this)->find(name) != nullptr; }

std::unique_ptr<AdapterChange> Adapter::take(const std::string& name, const std::vector<int64_t>& shape) {
  Module* m = find(name);
  if (!m) return nullptr;
  m->used = true;
  auto change = std::make_unique<AdapterChange>();
  if (m->replacement) {
    if (m->replacement->shape != shape)
      fail("TENSOR_SHAPE", directory_, ": adapter tensor \"", m->key, "\": expected ", shape_text(shape), ", got ",
           shape_text(m->replacement->shape));
    change->replacement_ = m->replacement;
    return change;
  }
  // lora_A [r, in], lora_B [out, r]; an embedding's weight is [in, out], so its change is the transpose.
  const int64_t r = m->a->shape[0], in = m->a->shape[1], out = m->b->shape[0];
  const std::vector<int64_t> expected = m->embedding ? std::vector<int64_t>{in, out} : std::vector<int64_t>{out, in};
  if (shape != expected)
    fail("TENSOR_SHAPE", directory_, ": adapter module of \"", name, "\": expected a change of ", shape_text(shape), ", got ", shape_text(expected));
  std::vector<float> a(size_t(m->a->size())), b(size_t(m->b->size()));
  read_f32(*m->a, 0, m->a->size(), a.data());
  read_f32(*m->b, 0, m->b->size(), b.data());
  change->cols_ = shape[1];
  change->rank_ = r;
  change->scale_ = m->scale;
  if (m->embedding) {
    auto transposed = [](const std::vector<float>& from, int64_t rows, int64_t cols) {
      std::vector<float> to(from.size());
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < cols; ++j) to[size_t(j * rows + i)] = from[size_t(i * cols + j)];
      return to;
    };
    change->left_ = transposed(a, r, in);
    change->right_ = transposed(b, out, r);
  } else {
    change->left_ = std::move(b);
    change->right_ = std::move(a);
  }
  return change;
}

void AdapterChange::apply(int64_t first, int64_t count, float* values) const {
  if (replacement_) {
    read_f32(*replacement_, first, count, values);
    return;
  }
  std::vector<double> sum(size_t(std::min(count, cols_)));
  for (int64_t done = 0; done < count;) {
    const int64_t row = (first + done) / cols_, col = (first + done) % cols_, n = std::min(count - done, cols_ - col);
    std::fill(sum.begin(), sum.begin() + n, 0.0);
    for (int64_t k = 0; k < rank_; ++k) {
      const double factor = left_[size_t(row * rank_ + k)];
      const float* right = right_.data() + k * cols_ + col;
      for (int64_t i = 0; i < n; ++i) sum[size_t(i)] += factor * double(right[i]);
    }
    for (int64_t i = 0; i < n; ++i) values[done + i] += float(sum[size_t(i)] * scale_);
    done += n;
  }
}

void Adapter::require_fits(const std::vector<std::string>& names) const {
  std::map<const Module*, std::string> taken;
  for (const std::string& name : names) {
    const Module* module = const_cast<Adapter*>(this)->find(name);
    if (!module) continue;
    const auto [before, first] = taken.emplace(module, name);
    if (!first) fail("CONFIG_INVALID", directory_, ": adapter tensor \"", module->key, "\" fits both \"", before->second, "\" and \"", name, "\"");
  }
  for (const auto& [path, module] : modules_)
    if (!taken.count(&module)) fail_unused(module);
}

void Adapter::fail_unused(const Module& module) const {
  fail("TENSOR_UNUSED", directory_, ": adapter tensor \"", module.key, "\" fits no tensor of the model (an adapter for another model?)");
}

void Adapter::require_all_used() const {
  for (const auto& [path, module] : modules_)
    if (!module.used) fail_unused(module);
}

}  // namespace conan
