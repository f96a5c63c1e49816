#include "models/audio/encoder.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace conan {

namespace {

const AudioArchitecture* const architectures[] = {&audio_whisper, &audio_qwen3_omni};

const AudioArchitecture& architecture_of(const ConfigReader& config) {
  const std::string type = config.string("model_type", "");
  std::string known;
  for (const AudioArchitecture* architecture : architectures)
    for (const char* name : architecture->model_types) {
      if (type == name) return *architecture;
      known += (known.empty() ? "" : ", ") + std::string(name);
    }
  fail("UNSUPPORTED_ARCHITECTURE", config.subject(), ": \"model_type\": expected one of ", known, ", got \"", type, "\"");
}

}  // namespace

std::optional<AudioConfig> read_audio_config(const Json& json, const std::string& subject) {
  const Json& audio = json["audio_config"];
  if (audio.is_null()) return std::nullopt;
  if (!audio.is_object()) fail("CONFIG_INVALID", subject, ": \"audio_config\": expected an object");
  AudioConfig config;
  config.encoder = &audio;
  config.subject = subject + ": audio_config";
  config.probe = architecture_of(ConfigReader(audio, config.subject)).probe;
  config.token = int32_t(ConfigReader(json, subject).integer("audio_token_id"));
  return config;
}

std::unique_ptr<AudioEncoder> load_audio_encoder(Context& context, const AudioConfig& config, WeightLoader& loader, WeightFormat format) {
  const ConfigReader reader(*config.encoder, config.subject);
  return architecture_of(reader).load(context, reader, loader, format);
}

TransformerConfig read_audio_blocks(const ConfigReader& config, const char* final_norm, bool key_bias) {
  TransformerConfig c;
  c.model_type = config.string("model_type", "");
  c.hidden = config.integer("d_model");
  c.layers = config.layers("encoder_layers");
  c.heads = c.kv_heads = config.integer("encoder_attention_heads");
  c.intermediate = config.integer("encoder_ffn_dim");
  if (c.hidden % c.heads) fail("CONFIG_INVALID", config.subject(), ": \"d_model\": expected a multiple of encoder_attention_heads, got ", c.hidden);
  c.head_dim = c.hidden / c.heads;
  c.max_positions = int64_t(1) << 30;
  c.norm = NormKind::layer;
  c.placement = NormPlacement::pre;
  c.norm_eps = 1e-5f;
  c.key_bias = key_bias;
  c.activation = read_activation(config, "activation_function", "gelu");
  c.attention_scale = 1 / std::sqrt(float(c.head_dim));
  c.layer.assign(size_t(c.layers), LayerConfig{});
  TensorNames& n = c.names;
  n.layers = "layers.";
  n.attention_norm = "layers.{}.self_attn_layer_norm";
  n.qkv = {"layers.{}.self_attn.q_proj", "layers.{}.self_attn.k_proj", "layers.{}.self_attn.v_proj"};
  n.output = "layers.{}.self_attn.out_proj";
  n.mlp_norm = "layers.{}.final_layer_norm";
  n.mlp_in = {"layers.{}.fc1"};
  n.mlp_out = "layers.{}.fc2";
  n.final_norm = final_norm;
  return c;
}

std::vector<float> sinusoids(int64_t positions, int64_t channels) {
  std::vector<float> out(size_t(positions * channels));
  const int64_t half = channels / 2;
  const double step = std::log(10000.0) / double(half - 1);
  for (int64_t p = 0; p < positions; ++p)
    for (int64_t i = 0; i < half; ++i) {
      const float angle = float(p) * float(std::exp(-step * double(i)));
      out[size_t(p * channels + i)] = float(std::sin(double(angle)));
      out[size_t(p * channels + half + i)] = float(std::cos(double(angle)));
    }
  return out;
}

Convolution load_convolution(Context& context, WeightLoader& loader, WeightFormat format, const std::string& name, const std::vector<int64_t>& shape,
                             int64_t channels) {
  Convolution convolution;
  convolution.channels = channels;
  for (size_t i = 1; i < shape.size(); ++i) convolution.taps *= shape[i];
  convolution.taps /= channels;
  convolution.weight = loader.pack_convolution(context, name, shape, channels, format);
  if (shape.size() > 2) convolution.bias = loader.take_values(name + ".bias", {shape[0]});
  return convolution;
}

void convolve(Context& context, const Convolution& convolution, const Matrix& x, const std::vector<int32_t>& rows, Activation activation,
              const Matrix& residual, const Matrix& y) {
  const int64_t K = convolution.taps, C = convolution.channels, wide = K * C;
  context.ops.for_rows(context, y.rows, wide + y.cols, [&](Context& own, int64_t first, int64_t count) {
    Arena::Scope scope(own.scratch);
    const Matrix together = own.scratch.contiguous(count * K, C);
    own.ops.gather(own, {x, together, rows.data() + first * K});
    LinearArgs args;
    args.x = {together.data, count, wide, wide};
    args.weight = convolution.weight.get();
    args.bias = convolution.bias.empty() ? nullptr : convolution.bias.data();
    args.activation = activation;
    if (residual.data) args.residual = residual.slice(first, count);
    args.y = y.slice(first, count);
    own.ops.linear(own, args);
  });
}

void convolve_backward(Context& context, const Convolution& convolution, const Matrix& x, const std::vector<int32_t>& rows, Activation activation,
                       const Matrix& dy, const Matrix& dx, Gradients& gradients) {
  constexpr int64_t kBlock = 1024;  // rows at a time: what is gathered for them is many times as large
  const int64_t K = convolution.taps, C = convolution.channels, wide = K * C, N = convolution.weight->rows;
  if (dx.data) clear(context, dx);
  for (int64_t first = 0; first < dy.rows; first += kBlock) {
    Arena::Scope scope(context.scratch);
    const int64_t count = std::min(kBlock, dy.rows - first);
    const Matrix together = context.scratch.contiguous(count * K, C), u = context.scratch.matrix(count, N);
    const Matrix joined{together.data, count, wide, wide};
    context.ops.gather(context, {x, together, rows.data() + first * K});
    Matrix du = dy.slice(first, count);
    if (activation != Activation::none) {
      LinearArgs args;
      args.x = joined;
      args.weight = convolution.weight.get();
      args.bias = convolution.bias.data();
      args.y = u;
      context.ops.linear(context, args);
      context.ops.activate_backward(context, {activation, false, u, du, u});
      du = u;
    }
    gradients.linear(context, *convolution.weight, convolution.bias, du, joined);
    if (!dx.data) continue;
    const Matrix back = context.scratch.matrix(count, wide);
    linear_input(context, gradients, *convolution.weight, du, back);
    std::vector<int32_t> tap(static_cast<size_t>(count));
    for (int64_t k = 0; k < K; ++k) {  // for one tap no row comes twice but that of zeros
      for (int64_t i = 0; i < count; ++i) tap[size_t(i)] = rows[size_t((first + i) * K + k)];
      context.ops.scatter(context, {back.columns(k * C, C), dx, tap.data(), true});
    }
  }
}

Transformer::Observer AudioEncoder::record(Context& context, Tape& tape, const Gradients& gradients) const {
  return blocks_->record(context, tape, stem_trains(gradients) ? 0 : blocks_->lowest_trained(gradients), gradients);
}

bool AudioEncoder::trains(const Gradients& gradients) const {
  return stem_trains(gradients) || head_trains(gradients) || blocks_->lowest_trained(gradients) < blocks_->config().layers;
}

}  // namespace conan
