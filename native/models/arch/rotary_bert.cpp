// BERT with rotary positions instead of a table of them: NomicBERT (Nussbaum et al. 2024), GTE (Zhang et al. 2024) and Jina embeddings 3
// (Sturua et al. 2024). Tensors have the names of their first publication, which transformers goes on writing.
#include <algorithm>
#include <utility>

#include "base/error.h"
#include "models/config.h"

namespace conan {

namespace {

/// One tensor holds queries, keys and values.
TransformerConfig encoder(const ConfigReader& config, TransformerConfig c) {
  divide_heads(config, c);
  c.type_vocab_size = config.integer("type_vocab_size", 1, 0);
  LayerConfig layer;
  layer.rope = 0;
  c.layer.assign(size_t(c.layers), layer);
  c.names.token_embedding = "embeddings.word_embeddings";
  if (c.type_vocab_size > 0) c.names.type_embedding = "embeddings.token_type_embeddings";
  return c;
}

/// Names that NomicBERT and Jina's model share.
void flash_names(TensorNames& n) {
  n.embedding_norm = "emb_ln";
  n.layers = "encoder.layers.";
  n.attention_norm = "encoder.layers.{}.norm1";
  n.mlp_in = {"encoder.layers.{}.mlp.fc1"};
  n.mlp_out = "encoder.layers.{}.mlp.fc2";
  n.mlp_norm = "encoder.layers.{}.norm2";
}

/// What the model's own code can do and this cannot.
void expect(const ConfigReader& config, const char* key, bool wanted) {
  if (config.boolean(key, wanted) != wanted)
    fail("UNSUPPORTED_ARCHITECTURE", config.subject(), ": \"", key, "\": expected ", wanted ? "true" : "false");
}

/// config.json of the model's own code: GPT-2's keys.
TransformerConfig first_nomic(const ConfigReader& config) {
  for (const char* key : {"prenorm", "parallel_block", "use_rms_norm", "rotary_emb_interleaved", "causal"}) expect(config, key, false);
  if (config.number("rotary_emb_fraction", 1) != 1 || config.integer("moe_every_n_layers", 0, 0) > 0 || config.has("rotary_emb_scale_base"))
    fail("UNSUPPORTED_ARCHITECTURE", config.subject(),
         ": expected rotary_emb_fraction 1, no rotary_emb_scale_base and no experts (moe_every_n_layers)");
  TransformerConfig c;
  c.vocab_size = config.integer("vocab_size");
  c.hidden = config.integer("n_embd");
  c.layers = config.layers("n_layer");
  c.heads = c.kv_heads = config.integer("n_head");
  c.intermediate = config.integer("n_inner");
  c.max_positions = config.integer("n_positions");
  // Beyond these, its code turns all tokens by angles that depend on the longest text of the batch.
  if (config.has("rotary_scaling_factor")) c.max_positions = std::min(c.max_positions, config.integer("max_trained_positions", 2048));
  c.norm_eps = float(config.positive("layer_norm_epsilon", 1e-5));
  const std::string activation = config.string("activation_function", "gelu");
  c.gated = activation == "swiglu" || activation == "geglu";
  c.activation =
      c.gated ? (activation == "swiglu" ? Activation::silu : Activation::gelu_erf) : read_activation(config, "activation_function", "gelu");
  c.qkv_bias = c.output_bias = config.boolean("qkv_proj_bias", true);
  c.mlp_bias = config.boolean("mlp_fc2_bias", true);
  c.mlp_in_bias = config.boolean("mlp_fc1_bias", true);
  return encoder(config, c);
}

TransformerConfig read_nomic(const ConfigReader& config) {
  const bool first = config.has("n_embd");
  TransformerConfig c = first ? first_nomic(config) : encoder(config, read_sizes(config));
  if (!first) {
    c.norm_eps = float(config.positive("layer_norm_eps", 1e-12));
    c.activation = read_activation(config, "hidden_act", "silu");
    c.gated = true;
    c.qkv_bias = c.output_bias = c.mlp_bias = c.mlp_in_bias = false;
  }
  c.ropes = {first ? read_rope(config, c.head_dim, 10000, "rotary_emb_base") : read_rope(config, c.head_dim, 1000)};
  TensorNames& n = c.names;
  flash_names(n);
  n.qkv = {"encoder.layers.{}.attn.Wqkv"};
  n.output = "encoder.layers.{}.attn.out_proj";
  if (c.gated) n.mlp_in = {"encoder.layers.{}.mlp.fc12", "encoder.layers.{}.mlp.fc11"};
  return c;
}

TransformerConfig read_jina(const ConfigReader& config) {
  TransformerConfig c = encoder(config, read_sizes(config));
  c.norm_eps = float(config.positive("layer_norm_eps", 1e-5));
  c.activation = read_activation(config, "hidden_act", "gelu");
  c.ropes = {read_rope(config, c.head_dim, 20000)};
  TensorNames& n = c.names;
  flash_names(n);
  n.qkv = {"encoder.layers.{}.mixer.Wqkv"};
  n.output = "encoder.layers.{}.mixer.out_proj";
  return c;
}

TransformerConfig read_gte(const ConfigReader& config) {
  expect(config, "pack_qkv", true);
  expect(config, "logn_attention_scale", false);
  for (const auto& [key, wanted] : {std::pair("position_embedding_type", "rope"), std::pair("layer_norm_type", "layer_norm")})
    if (const std::string given = config.string(key, wanted); given != wanted)
      fail("UNSUPPORTED_ARCHITECTURE", config.subject(), ": \"", key, "\": expected \"", wanted, "\", got \"", given, "\"");
  TransformerConfig c = encoder(config, read_sizes(config));
  c.norm_eps = float(config.positive("layer_norm_eps", 1e-12));
  c.activation = read_activation(config, "hidden_act", "gelu");
  c.gated = true;
  c.mlp_in_bias = false;
  c.ropes = {read_rope(config, c.head_dim, config.string("model_type", "") == "new" ? 10000 : 160000)};
  TensorNames& n = c.names;
  n.embedding_norm = "embeddings.LayerNorm";
  n.layers = "encoder.layer.";
  n.qkv = {"encoder.layer.{}.attention.qkv_proj"};
  n.output = "encoder.layer.{}.attention.o_proj";
  n.attention_norm = "encoder.layer.{}.attn_ln";
  n.mlp_in = {"encoder.layer.{}.mlp.up_gate_proj"};
  n.value_first = true;
  n.mlp_out = "encoder.layer.{}.mlp.down_proj";
  n.mlp_norm = "encoder.layer.{}.mlp_ln";
  return c;
}

}  // namespace

const Architecture arch_nomic_bert = {{"nomic_bert"}, read_nomic};
const Architecture arch_jina_embeddings_v3 = {{"jina_embeddings_v3"}, read_jina};
const Architecture arch_gte = {{"gte", "new"}, read_gte};

}  // namespace conan
