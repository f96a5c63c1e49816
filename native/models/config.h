// config.json as the models see it, and an architecture as data: a transformer is described by the structures here, and
// each file in arch/ fills them in from one family's config.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "ops/ops.h"

namespace conan {

/// Typed access to config.json; a missing or wrong key is a CONFIG_INVALID error that names it.
class ConfigReader {
 public:
  ConfigReader(const Json& json, std::string subject) : json_(json), subject_(std::move(subject)) {}

  int64_t integer(const char* key) const;                                       // required, > 0; no whole number exceeds 2^31 - 1
  int64_t integer(const char* key, int64_t fallback, int64_t least = 1) const;  // where the key is absent or null, the fallback as it is
  int64_t layers(const char* key) const;  // integer(key), and no more than a list of them can be made of before the first is looked for
  double number(const char* key, double fallback) const;
  double positive(const char* key, double fallback) const;  // also as a float
  bool boolean(const char* key, bool fallback) const;
  std::string string(const char* key, const std::string& fallback) const;
  const Json& at(const char* key) const { return json_[key]; }
  bool has(const char* key) const { return json_.has(key); }
  const std::string& subject() const { return subject_; }
  template <class... Parts>
  [[noreturn]] void wrong(const char* key, const Parts&... parts) const;

 private:
  int64_t whole(const char* key, int64_t least) const;

  const Json& json_;
  std::string subject_;
};

/// Where the norms stand: after the residual sum (BERT), before each half of a layer (Llama), or both before and after
/// (Gemma 3; the one after comes before the residual sum).
enum class NormPlacement { post, pre, sandwich };

/// Rotary positions: angle of pair i at position p is p * frequencies[i]. With several axes (rows and columns of an image;
/// time, rows and columns in M-RoPE) p is the position along axis[i].
struct RopeConfig {
  std::vector<float> frequencies;
  std::vector<int> axis;  // empty: there is one
  float factor = 1;       // on cos and sin (YaRN)
};

struct LayerConfig {
  int rope = -1;                  // index into TransformerConfig::ropes, -1: none
  int64_t left = -1, right = -1;  // attention window as in AttentionArgs
  bool input_norm = true;         // ModernBERT has none before its first attention
};

/// Names of the tensors without the prefix that a head puts before them; "{}" is the layer. Empty: there is none.
struct TensorNames {
  std::string token_embedding, position_embedding, type_embedding, embedding_norm, relative_bias, final_norm;
  std::vector<std::string> qkv;  // three, or one with all
  std::string output;
  std::string attention_norm, attention_post_norm, mlp_norm, mlp_post_norm;
  std::string q_norm, k_norm;
  std::vector<std::string> mlp_in;  // gate and value, or one with both, or the one of an ungated MLP
  bool value_first = false;         // in the one with both
  std::string mlp_out;
  std::string layers;  // what all names inside layers start with: no tensor there may stay unused
};

constexpr int64_t most_head_dim = 65536;  // so that a list of frequencies can be made before the first tensor is looked for

struct TransformerConfig {
  std::string model_type;
  int64_t vocab_size = 0, hidden = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0, intermediate = 0;
  int64_t type_vocab_size = 0;
  int64_t max_positions = 0;  // longest input in tokens
  NormKind norm = NormKind::layer;
  NormPlacement placement = NormPlacement::post;
  float norm_eps = 1e-12f, norm_weight_offset = 0;  // Gemma's norms multiply by 1 + weight
  bool norm_bias = true;
  Activation activation = Activation::gelu_erf;
  bool gated = false;
  bool qkv_bias = true, output_bias = true, mlp_bias = true;
  bool key_bias = true;     // with qkv_bias: keys may have none (Whisper)
  bool mlp_in_bias = true;  // with mlp_bias: what goes into the activation may have none (GTE)
  float attention_scale = 0;
  float embedding_scale = 1;
  int position_offset = 0;  // learned positions start here; with pad_id >= 0 they count non-pad tokens (RoBERTa)
  int pad_id = -1;
  int relative_buckets = 0;
  bool tied_head = false;  // lm_head.weight may stand in for the token embedding
  std::vector<RopeConfig> ropes;
  std::vector<LayerConfig> layer;
  TensorNames names;

  int64_t query_width() const { return heads * head_dim; }
  int64_t kv_width() const { return kv_heads * head_dim; }
};

/// A vision transformer over patches, as of Qwen3-VL: `tower` are its blocks.
struct VisionConfig {
  TransformerConfig tower;
  int64_t channels = 3, patch = 0, temporal_patch = 0, merge = 0;  // merge x merge patches become one token
  int64_t grid = 0;                                                // learned positions: grid x grid
  int64_t outputs = 0;                                             // channels of a token
  std::vector<int64_t> deepstack;                                  // layers whose states go to the language model's first layers
  int32_t image_token = -1, video_token = -1;

  int64_t patch_values() const { return channels * temporal_patch * patch * patch; }
};

/// A tensor that every checkpoint of this model has: what stands before it is the prefix of all.
std::string probe_tensor(const TransformerConfig& config);

/// The sizes that most families spell alike; as many key heads as heads.
TransformerConfig read_sizes(const ConfigReader& config);
/// Heads that share the hidden size evenly, and the usual scale of their scores. Error CONFIG_INVALID where they do not.
void divide_heads(const ConfigReader& config, TransformerConfig& c);

Activation read_activation(const ConfigReader& config, const char* key, const char* fallback);

/// rope_theta + rope_scaling (released checkpoints) or rope_parameters (transformers 5), of one layer type where the
/// latter has several. Types: default, linear, llama3, yarn.
RopeConfig read_rope(const ConfigReader& config, int64_t head_dim, double default_theta, const char* theta_key = "rope_theta",
                     const char* layer_type = nullptr);

/// The layers that layer_types marks as sliding; where it is absent, those for which `pattern(layer)` holds.
std::vector<bool> read_sliding_layers(const ConfigReader& config, int64_t layers, bool (*pattern)(const ConfigReader&, int64_t));

// ---- architectures

struct Architecture {
  std::vector<const char*> model_types;  // config.json's model_type
  TransformerConfig (*read)(const ConfigReader&);
};

extern const Architecture arch_bert, arch_roberta, arch_mpnet, arch_distilbert, arch_modernbert, arch_llama, arch_qwen, arch_qwen3_vl, arch_gemma3,
    arch_eurobert, arch_nomic_bert, arch_jina_embeddings_v3, arch_gte;

/// The vision tower that a config.json describes beside its language model; none: a model of text alone.
std::optional<VisionConfig> read_vision_config(const Json& config, const std::string& subject);

/// By config.json's model_type; UNSUPPORTED_ARCHITECTURE names those there are.
TransformerConfig read_transformer_config(const Json& config, const std::string& subject);

}  // namespace conan
