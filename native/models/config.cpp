#include "models/config.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace conan {

template <class... Parts>
void ConfigReader::wrong(const char* key, const Parts&... parts) const {
  fail("CONFIG_INVALID", subject_, ": \"", key, "\": ", parts...);
}

namespace {
std::string shown(const Json& value) {
  switch (value.kind()) {
    case Json::Kind::null: return "nothing";
    case Json::Kind::boolean: return value.boolean() ? "true" : "false";
    case Json::Kind::number: return value.is_integer() ? text(value.integer()) : text(value.number());
    case Json::Kind::string: return json_quote(value.string());
    case Json::Kind::array: return "a list";
    case Json::Kind::object: return "an object";
  }
  return "";
}
}  // namespace

int64_t ConfigReader::whole(const char* key, int64_t least) const {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  const Json& value = json_[key];
  if (!value.is_integer() || value.integer() < least || value.integer() > most)
    wrong(key, "expected a whole number from ", least, " to ", most, ", got ", shown(value));
  return value.integer();
}
int64_t ConfigReader::integer(const char* key) const { return whole(key, 1); }
int64_t ConfigReader::integer(const char* key, int64_t fallback, int64_t least) const { return json_[key].is_null() ? fallback : whole(key, least); }
int64_t ConfigReader::layers(const char* key) const {
  constexpr int64_t most = 65536;
  const int64_t count = integer(key);
  if (count > most) wrong(key, "expected at most ", most, ", got ", count);
  return count;
}
double ConfigReader::number(const char* key, double fallback) const {
  const Json& value = json_[key];
  if (value.is_null()) return fallback;
  if (!value.is_number()) wrong(key, "expected a number, got ", shown(value));
  return value.number();
}
double ConfigReader::positive(const char* key, double fallback) const {
  const double value = number(key, fallback);
  if (!(float(value) > 0 && std::isfinite(float(value)))) wrong(key, "expected a number above 0, got ", value);
  return value;
}
bool ConfigReader::boolean(const char* key, bool fallback) const {
  const Json& value = json_[key];
  if (value.is_null()) return fallback;
  if (value.kind() != Json::Kind::boolean) wrong(key, "expected true or false, got ", shown(value));
  return value.boolean();
}
std::string ConfigReader::string(const char* key, const std::string& fallback) const {
  const Json& value = json_[key];
  if (value.is_null()) return fallback;
  if (!value.is_string()) wrong(key, "expected a string, got ", shown(value));
  return value.string();
}

std::string probe_tensor(const TransformerConfig& config) {
  std::string name = config.names.mlp_out;
  return name.replace(name.find("{}"), 2, "0") + ".weight";
}

TransformerConfig read_sizes(const ConfigReader& config) {
  TransformerConfig c;
  c.vocab_size = config.integer("vocab_size");
  c.hidden = config.integer("hidden_size");
  c.layers = config.layers("num_hidden_layers");
  c.heads = c.kv_heads = config.integer("num_attention_heads");
  c.intermediate = config.integer("intermediate_size");
  c.max_positions = config.integer("max_position_embeddings");
  return c;
}

void divide_heads(const ConfigReader& config, TransformerConfig& c) {
  if (c.hidden % c.heads) fail("CONFIG_INVALID", config.subject(), ": expected a hidden size that ", c.heads, " heads divide, got ", c.hidden);
  c.head_dim = c.hidden / c.heads;
  c.attention_scale = 1 / std::sqrt(float(c.head_dim));
}

Activation read_activation(const ConfigReader& config, const char* key, const char* fallback) {
  struct Row {
    const char* name;
    Activation activation;
  };
  static const Row rows[] = {{"gelu", Activation::gelu_erf},       {"gelu_python", Activation::gelu_erf},
                             {"gelu_new", Activation::gelu_tanh},  {"gelu_pytorch_tanh", Activation::gelu_tanh},
                             {"gelu_fast", Activation::gelu_tanh}, {"quick_gelu", Activation::quick_gelu},
                             {"relu", Activation::relu},           {"silu", Activation::silu},
                             {"swish", Activation::silu},          {"tanh", Activation::tanh}};
  const std::string name = config.string(key, fallback);
  for (const Row& row : rows)
    if (name == row.name) return row.activation;
  config.wrong(key, "expected gelu, gelu_new, gelu_pytorch_tanh, quick_gelu, relu, silu or tanh, got \"", name, "\"");
}

RopeConfig read_rope(const ConfigReader& config, int64_t head_dim, double default_theta, const char* theta_key, const char* layer_type) {
  // The two spellings, brought to one: a theta and an object of scaling parameters.
  const Json* parameters = &config.at("rope_parameters");
  if (layer_type && parameters->is_object() && (*parameters)[layer_type].is_object()) parameters = &(*parameters)[layer_type];
  const bool new_spelling = parameters->is_object();
  if (!new_spelling) parameters = &config.at("rope_scaling");
  ConfigReader scaling(*parameters, config.subject() + (new_spelling ? ": rope_parameters" : ": rope_scaling"));
  const double theta = scaling.number("rope_theta", config.number(theta_key, default_theta));
  const std::string type = scaling.string("rope_type", scaling.string("type", "default"));
  const double part = scaling.number("partial_rotary_factor", config.number("partial_rotary_factor", 1));
  if (!(part > 0 && part <= 1)) config.wrong("partial_rotary_factor", "expected more than 0 and at most 1, got ", part);
  if (head_dim < 1 || head_dim > most_head_dim) config.wrong("head_dim", "expected 1 to ", most_head_dim, ", got ", head_dim);
  const auto rotated = int64_t(double(head_dim) * part);
  if (theta <= 1) config.wrong(theta_key, "expected a number above 1, got ", theta);

  RopeConfig rope;
  for (int64_t i = 0; i < rotated / 2; ++i) rope.frequencies.push_back(float(1 / std::pow(theta, double(2 * i) / double(rotated))));
  const double pi = 3.14159265358979323846;
  const double original = double(scaling.integer("original_max_position_embeddings", config.integer("max_position_embeddings", 0)));
  const double factor = scaling.positive("factor", 1);
  if (type == "default" || type == "mrope") {
  } else if (type == "linear") {
    for (float& f : rope.frequencies) f = float(f / factor);
  } else if (type == "ntk") {
    // Su 2023 (kexue.fm/archives/9706), as GTE's own code has it: an angle shrinks the more the lower it is, all of them a little.
    if (scaling.has("mixed_b")) fail("UNSUPPORTED_ARCHITECTURE", scaling.subject(), ": \"mixed_b\": expected none");
    for (size_t i = 0; i < rope.frequencies.size() && factor > 1; ++i)
      rope.frequencies[i] = float(std::pow(theta * factor, -double(2 * i) / double(rotated)) / std::pow(factor, 2 / double(rotated)));
  } else if (type == "llama3") {
    // Llama 3.1: long wavelengths are stretched, short ones stay, those between are blended.
    const double low = scaling.number("low_freq_factor", 1), high = scaling.number("high_freq_factor", 4);
    for (float& f : rope.frequencies) {
      const double wavelength = 2 * pi / f;
      if (wavelength > original / low) {
        f = float(f / factor);
      } else if (wavelength >= original / high) {
        const double smooth = (original / wavelength - low) / (high - low);
        f = float((1 - smooth) * f / factor + smooth * f);
      }
    }
  } else if (type == "yarn") {
    // YaRN (Peng et al. 2023): a ramp over the dimensions from extrapolation to interpolation.
    auto dimension = [&](double rotations) { return double(rotated) * std::log(original / (rotations * 2 * pi)) / (2 * std::log(theta)); };
    double low = dimension(scaling.positive("beta_fast", 32)), high = dimension(scaling.positive("beta_slow", 1));
    if (scaling.boolean("truncate", true)) low = std::floor(low), high = std::ceil(high);
    low = std::max(low, 0.0), high = std::min(high, double(rotated - 1));
    if (low == high) high += 0.001;
    for (size_t i = 0; i < rope.frequencies.size(); ++i) {
      const double ramp = std::clamp((double(i) - low) / (high - low), 0.0, 1.0), f = rope.frequencies[i];
      rope.frequencies[i] = float(f / factor * ramp + f * (1 - ramp));
    }
    auto mscale = [&](double m) { return factor <= 1 ? 1 : 0.1 * m * std::log(factor) + 1; };
    const double m = scaling.number("mscale", 0), all = scaling.number("mscale_all_dim", 0);
    rope.factor = float(scaling.number("attention_factor", m != 0 && all != 0 ? mscale(m) / mscale(all) : mscale(1)));
  } else {
    scaling.wrong("rope_type", "expected default, linear, ntk, llama3 or yarn, got \"", type, "\"");
  }
  return rope;
}

std::vector<bool> read_sliding_layers(const ConfigReader& config, int64_t layers, bool (*pattern)(const ConfigReader&, int64_t)) {
  std::vector<bool> sliding;
  const Json& types = config.at("layer_types");
  if (types.is_array() && int64_t(types.items().size()) != layers)
    config.wrong("layer_types", "expected one for each of the ", layers, " layers, got ", types.items().size());
  for (int64_t i = 0; i < layers; ++i) {
    if (!types.is_array()) {
      sliding.push_back(pattern(config, i));
      continue;
    }
    const std::string& type = types.items()[size_t(i)].string();
    if (type != "sliding_attention" && type != "full_attention")
      config.wrong("layer_types", "expected sliding_attention or full_attention, got \"", type, "\"");
    sliding.push_back(type == "sliding_attention");
  }
  return sliding;
}

TransformerConfig read_transformer_config(const Json& json, const std::string& subject) {
  static const Architecture* const architectures[] = {
      &arch_bert,     &arch_roberta, &arch_mpnet,    &arch_distilbert, &arch_modernbert,         &arch_llama, &arch_qwen,
      &arch_qwen3_vl, &arch_gemma3,  &arch_eurobert, &arch_nomic_bert, &arch_jina_embeddings_v3, &arch_gte};
  ConfigReader config(json, subject);
  const std::string type = config.string("model_type", "");
  std::string known;
  for (const Architecture* architecture : architectures)
    for (const char* name : architecture->model_types) {
      if (type == name) {
        TransformerConfig read = architecture->read(config);
        read.model_type = type;
        if (read.heads % read.kv_heads)
          config.wrong("num_key_value_heads", "expected a divisor of the ", read.heads, " attention heads, got ", read.kv_heads);
        return read;
      }
      known += (known.empty() ? "" : ", ") + std::string(name);
    }
  fail("UNSUPPORTED_ARCHITECTURE", subject, ": \"model_type\": expected one of ", known, ", got \"", type, "\"");
}

}  // namespace conan
