// Qwen3-VL (Bai et al. 2025): Qwen3 with interleaved M-RoPE as language model, and a vision tower with learned positions
// interpolated to the image's grid, two-dimensional rotary positions and DeepStack.
#include <cmath>

#include "base/error.h"
#include "models/config.h"

namespace conan {

TransformerConfig read_qwen(const ConfigReader& config);

namespace {

/// The part of config.json for one half of the model.
ConfigReader part(const ConfigReader& config, const char* key) {
  if (!config.at(key).is_object()) fail("CONFIG_INVALID", config.subject(), ": \"", key, "\": expected an object");
  return ConfigReader(config.at(key), config.subject() + ": " + key);
}

TransformerConfig read_language(const ConfigReader& config) {
  const ConfigReader text = part(config, "text_config");
  TransformerConfig c = read_qwen(text);
  // Pair i turns with time, unless i % 3 gives it to rows or columns, as long as their sections last.
  const Json& old = text.at("rope_scaling")["mrope_section"];
  const Json& section = text.at("rope_parameters").is_object() ? text.at("rope_parameters")["mrope_section"] : old;
  std::vector<int64_t> sections = {24, 20, 20};
  if (section.is_array()) {
    sections.clear();
    for (const Json& size : section.items()) sections.push_back(size.integer());
  }
  if (sections.size() != 3)
    fail("CONFIG_INVALID", text.subject(), ": \"mrope_section\": expected three sizes (time, rows, columns), got ", sections.size());
  RopeConfig& rope = c.ropes[0];
  for (size_t i = 0; i < rope.frequencies.size(); ++i) rope.axis.push_back(i % 3 != 0 && int64_t(i) < 3 * sections[i % 3] ? int(i % 3) : 0);
  return c;
}

}  // namespace

const Architecture arch_qwen3_vl = {{"qwen3_vl"}, read_language};

std::optional<VisionConfig> read_vision_config(const Json& json, const std::string& subject) {
  ConfigReader config(json, subject);
  // A small model of text may be given the same tower: its config.json then has a vision_config too.
  if (!json["vision_config"].is_object() && config.string("model_type", "") != "qwen3_vl") return std::nullopt;
  const ConfigReader vision = part(config, "vision_config");
  VisionConfig v;
  v.channels = vision.integer("in_channels", 3);
  v.patch = vision.integer("patch_size");
  v.temporal_patch = vision.integer("temporal_patch_size");
  v.merge = vision.integer("spatial_merge_size");
  v.outputs = vision.integer("out_hidden_size");
  const int64_t positions = vision.integer("num_position_embeddings");
  v.grid = int64_t(std::lround(std::sqrt(double(positions))));
  if (v.grid * v.grid != positions)
    fail("CONFIG_INVALID", vision.subject(), ": \"num_position_embeddings\": expected a square number, got ", positions);
  v.image_token = int32_t(config.integer("image_token_id", 151655, 0));
  v.video_token = int32_t(config.integer("video_token_id", 151656, 0));

  TransformerConfig& c = v.tower;
  c.model_type = "qwen3_vl_vision";
  c.hidden = vision.integer("hidden_size");
  c.layers = vision.layers("depth");
  c.heads = c.kv_heads = vision.integer("num_heads");
  c.intermediate = vision.integer("intermediate_size");
  c.head_dim = c.hidden / c.heads;
  if (c.hidden % (4 * c.heads) || c.head_dim > most_head_dim)
    fail("CONFIG_INVALID", vision.subject(), ": \"hidden_size\": expected a multiple of 4 * num_heads, at most ", most_head_dim, " each, got ",
         c.hidden);
  c.max_positions = int64_t(1) << 30;
  c.norm = NormKind::layer;
  c.placement = NormPlacement::pre;
  c.norm_eps = 1e-6f;
  c.activation = read_activation(vision, "hidden_act", "gelu_pytorch_tanh");
  c.attention_scale = 1 / std::sqrt(float(c.head_dim));
  // A quarter of the head turns with the row, a quarter with the column, both at the same frequencies.
  RopeConfig rope;
  const ConfigReader parameters(vision.at("rope_parameters"), vision.subject() + ": rope_parameters");
  const double theta = parameters.positive("rope_theta", 10000);
  for (int axis = 0; axis < 2; ++axis)
    for (int64_t i = 0; i < c.head_dim / 4; ++i) {
      rope.frequencies.push_back(float(1 / std::pow(theta, double(2 * i) / double(c.head_dim / 2))));
      rope.axis.push_back(axis);
    }
  c.ropes = {rope};
  LayerConfig layer;
  layer.rope = 0;
  c.layer.assign(size_t(c.layers), layer);
  const Json& deepstack = vision.at("deepstack_visual_indexes");
  for (const Json& index : deepstack.items()) {
    if (!index.is_integer() || index.integer() < 0 || index.integer() >= c.layers)
      fail("CONFIG_INVALID", vision.subject(), ": \"deepstack_visual_indexes\": expected layers below ", c.layers);
    v.deepstack.push_back(index.integer());
  }
  TensorNames& n = c.names;
  n.layers = "blocks.";
  n.attention_norm = "blocks.{}.norm1";
  n.qkv = {"blocks.{}.attn.qkv"};
  n.output = "blocks.{}.attn.proj";
  n.mlp_norm = "blocks.{}.norm2";
  n.mlp_in = {"blocks.{}.mlp.linear_fc1"};
  n.mlp_out = "blocks.{}.mlp.linear_fc2";
  return v;
}

}  // namespace conan
