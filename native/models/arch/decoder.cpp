// The Llama family of decoders: Llama and Mistral, Qwen2 and Qwen3 (QK-norm), Gemma 3 text (norms before and after, two
// rope bases, windows; EmbeddingGemma runs it without the causal mask), EuroBERT (Llama without that mask).
#include <cmath>

#include "base/error.h"
#include "models/config.h"

namespace conan {

namespace {

TransformerConfig decoder(const ConfigReader& config) {
  TransformerConfig c = read_sizes(config);
  c.kv_heads = config.integer("num_key_value_heads", c.heads);
  c.head_dim = config.integer("head_dim", c.hidden / c.heads);
  c.norm = NormKind::rms;
  c.placement = NormPlacement::pre;
  c.norm_eps = float(config.positive("rms_norm_eps", 1e-6));
  c.norm_bias = false;
  c.qkv_bias = c.output_bias = config.boolean("attention_bias", false);
  c.mlp_bias = config.boolean("mlp_bias", false);
  c.activation = read_activation(config, "hidden_act", "silu");
  c.gated = true;
  c.attention_scale = 1 / std::sqrt(float(c.head_dim));
  // Some embedding models are decoders run without the causal mask, and say so.
  const bool causal = !config.boolean("use_bidirectional_attention", false) && config.boolean("is_causal", true);
  for (int64_t i = 0; i < c.layers; ++i) {
    LayerConfig layer;
    layer.rope = 0;
    layer.right = causal ? 0 : -1;
    c.layer.push_back(layer);
  }
  c.tied_head = config.boolean("tie_word_embeddings", false);
  TensorNames& n = c.names;
  n.token_embedding = "embed_tokens";
  n.layers = "layers.";
  n.attention_norm = "layers.{}.input_layernorm";
  n.qkv = {"layers.{}.self_attn.q_proj", "layers.{}.self_attn.k_proj", "layers.{}.self_attn.v_proj"};
  n.output = "layers.{}.self_attn.o_proj";
  n.mlp_norm = "layers.{}.post_attention_layernorm";
  n.mlp_in = {"layers.{}.mlp.gate_proj", "layers.{}.mlp.up_proj"};
  n.mlp_out = "layers.{}.mlp.down_proj";
  n.final_norm = "norm";
  return c;
}

/// A window counts the token itself: `window` = 3 sees two to the left.
void slide(TransformerConfig& c, const std::vector<bool>& sliding, int64_t window) {
  for (size_t i = 0; i < c.layer.size(); ++i)
    if (sliding[i]) c.layer[i].left = window - 1;
}

TransformerConfig read_llama(const ConfigReader& config) {
  TransformerConfig c = decoder(config);
  c.ropes = {read_rope(config, c.head_dim, 10000)};
  if (config.string("model_type", "") == "mistral" && config.has("sliding_window"))
    slide(c, std::vector<bool>(size_t(c.layers), true), config.integer("sliding_window"));
  return c;
}

TransformerConfig read_eurobert(const ConfigReader& config) {
  TransformerConfig c = read_llama(config);
  for (LayerConfig& layer : c.layer) layer.right = -1;
  return c;
}

TransformerConfig read_gemma3(const ConfigReader& config) {
  TransformerConfig c = decoder(config);
  c.placement = NormPlacement::sandwich;
  c.norm_weight_offset = 1;
  c.activation = read_activation(config, "hidden_activation", "gelu_pytorch_tanh");
  c.attention_scale = float(1 / std::sqrt(config.positive("query_pre_attn_scalar", 256)));
  c.embedding_scale = std::sqrt(float(c.hidden));
  c.tied_head = config.boolean("tie_word_embeddings", true);
  for (const char* key : {"attn_logit_softcapping", "final_logit_softcapping"})
    if (config.has(key)) fail("UNSUPPORTED_ARCHITECTURE", config.subject(), ": \"", key, "\": expected none");
  c.ropes = {read_rope(config, c.head_dim, 1000000, "rope_theta", "full_attention"), {}};
  // Local layers: their own base, and no scaling in the old spelling.
  if (config.at("rope_parameters").is_object()) {
    c.ropes[1] = read_rope(config, c.head_dim, 10000, "rope_local_base_freq", "sliding_attention");
  } else {
    const Json none;
    const double theta = config.number("rope_local_base_freq", 10000);
    c.ropes[1] = read_rope(ConfigReader(none, config.subject()), c.head_dim, theta);
  }
  const std::vector<bool> sliding = read_sliding_layers(
      config, c.layers, [](const ConfigReader& r, int64_t layer) { return (layer + 1) % r.integer("sliding_window_pattern", 6) != 0; });
  const bool bidirectional = config.boolean("use_bidirectional_attention", false);
  const int64_t window = config.integer("sliding_window", 4096);
  for (int64_t i = 0; i < c.layers; ++i) {
    if (!sliding[size_t(i)]) continue;
    LayerConfig& layer = c.layer[size_t(i)];
    layer.rope = 1;
    layer.left = bidirectional ? window / 2 : window - 1;
    if (bidirectional) layer.right = window / 2;
  }
  TensorNames& n = c.names;
  n.attention_post_norm = "layers.{}.post_attention_layernorm";
  n.mlp_norm = "layers.{}.pre_feedforward_layernorm";
  n.mlp_post_norm = "layers.{}.post_feedforward_layernorm";
  n.q_norm = "layers.{}.self_attn.q_norm";
  n.k_norm = "layers.{}.self_attn.k_norm";
  return c;
}

}  // namespace

TransformerConfig read_qwen(const ConfigReader& config) {
  TransformerConfig c = decoder(config);
  c.ropes = {read_rope(config, c.head_dim, 10000)};
  if (config.string("model_type", "") == "qwen2") {
    c.qkv_bias = true;
    c.output_bias = false;
  } else {
    c.names.q_norm = "layers.{}.self_attn.q_norm";
    c.names.k_norm = "layers.{}.self_attn.k_norm";
  }
  if (config.boolean("use_sliding_window", false) && config.has("sliding_window"))
    slide(c,
          read_sliding_layers(config, c.layers, [](const ConfigReader& r, int64_t layer) { return layer >= r.integer("max_window_layers", 28, 0); }),
          config.integer("sliding_window"));
  return c;
}

const Architecture arch_llama = {{"llama", "mistral"}, read_llama};
const Architecture arch_eurobert = {{"eurobert"}, read_eurobert};
const Architecture arch_qwen = {{"qwen3", "qwen2"}, read_qwen};
const Architecture arch_gemma3 = {{"gemma3_text"}, read_gemma3};

}  // namespace conan
