// ModernBERT (Warner et al. 2024): rotary positions, every n-th layer sees everything and the others a window, gated MLP,
// pre-norm without biases.
#include <cmath>

#include "models/config.h"

namespace conan {

namespace {

TransformerConfig read_modernbert(const ConfigReader& config) {
  TransformerConfig c = read_sizes(config);
  c.head_dim = c.hidden / c.heads;
  c.placement = NormPlacement::pre;
  c.norm_eps = float(config.positive("norm_eps", 1e-5));
  c.norm_bias = config.boolean("norm_bias", false);
  c.qkv_bias = c.output_bias = config.boolean("attention_bias", false);
  c.mlp_bias = config.boolean("mlp_bias", false);
  c.activation = read_activation(config, "hidden_activation", "gelu");
  c.gated = true;
  c.attention_scale = 1 / std::sqrt(float(c.head_dim));
  c.ropes = {read_rope(config, c.head_dim, 160000, "global_rope_theta", "full_attention"),
             read_rope(config, c.head_dim, 10000, "local_rope_theta", "sliding_attention")};
  const std::vector<bool> sliding = read_sliding_layers(
      config, c.layers, [](const ConfigReader& r, int64_t layer) { return layer % r.integer("global_attn_every_n_layers", 3) != 0; });
  const int64_t reach = config.integer("local_attention", 128) / 2;
  for (int64_t i = 0; i < c.layers; ++i) {
    LayerConfig layer;
    layer.rope = sliding[size_t(i)] ? 1 : 0;
    if (sliding[size_t(i)]) layer.left = layer.right = reach;
    layer.input_norm = i > 0;
    c.layer.push_back(layer);
  }
  TensorNames& n = c.names;
  n.token_embedding = "embeddings.tok_embeddings";
  n.embedding_norm = "embeddings.norm";
  n.layers = "layers.";
  n.attention_norm = "layers.{}.attn_norm";
  n.qkv = {"layers.{}.attn.Wqkv"};
  n.output = "layers.{}.attn.Wo";
  n.mlp_norm = "layers.{}.mlp_norm";
  n.mlp_in = {"layers.{}.mlp.Wi"};
  n.mlp_out = "layers.{}.mlp.Wo";
  n.final_norm = "final_norm";
  return c;
}

}  // namespace

const Architecture arch_modernbert = {{"modernbert"}, read_modernbert};

}  // namespace conan
