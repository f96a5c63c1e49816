// Whisper's encoder (Radford et al. 2023): two convolutions, learned positions, blocks with norms before. A clip costs what it lasts:
// it is not padded to 30 seconds, and one that is longer is taken in windows of as many frames as there are positions for.
#include <algorithm>

#include "base/error.h"
#include "models/audio/encoder.h"

namespace conan {

namespace {

class Whisper : public AudioEncoder {
 public:
  Whisper(Context& context, const ConfigReader& config, WeightLoader& loader, WeightFormat format) {
    TransformerConfig blocks = read_audio_blocks(config, "layer_norm", false);
    const int64_t C = blocks.hidden;
    bins_ = config.integer("num_mel_bins");
    outputs_ = C;
    max_positions_ = config.integer("max_source_positions");
    conv1_ = load_convolution(context, loader, WeightFormat::f32, "conv1", {C, bins_, 3}, bins_);  // its inputs are what was heard: not rounded
    conv2_ = load_convolution(context, loader, format, "conv2", {C, C, 3}, C);
    positions_ = loader.take_values("embed_positions.weight", {max_positions_, C});
    blocks_ = std::make_unique<Transformer>(context, std::move(blocks), loader, format, std::nullopt);
    for (const char* part : {"conv", "embed_positions."}) loader.require_all_used(part);
  }

  int64_t tokens(int64_t frames) const override {
    const int64_t window = 2 * max_positions_;
    return frames / window * max_positions_ + (frames % window + 1) / 2;
  }

  size_t weight_bytes() const override { return blocks_->weight_bytes() + conv1_.weight->bytes + conv2_.weight->bytes; }

  Matrix forward(Context& context, const Sounds& sounds, const Transformer::Observer& observer) const override {
    const Plan plan = plan_of(sounds);
    const auto N = int64_t(plan.places.size()), C = outputs_;
    const Matrix y = context.scratch.matrix(N, C);
    {
      Arena::Scope scope(context.scratch);
      const Matrix inner = first_convolution(context, sounds, plan, nullptr), place = context.scratch.matrix(N, C);
      context.ops.gather(context, {{positions_.data(), max_positions_, C, C}, place, plan.places.data()});
      convolve(context, conv2_, inner, plan.second_taps, Activation::gelu_erf, place, y);
    }
    return blocks_->forward(context, input_of(plan.offsets, y), std::nullopt, observer);
  }

  void backward(Context& context, const Sounds& sounds, const Tape& tape, const Matrix& dy, Gradients& gradients) const override {
    Arena::Scope scope(context.scratch);
    const Plan plan = plan_of(sounds);
    const bool stem = stem_trains(gradients);
    const InputGradients given = blocks_->backward(context, input_of(plan.offsets, {}), tape, dy, gradients, stem);
    if (!stem) return;
    Matrix heard;
    const Matrix inner = first_convolution(context, sounds, plan, &heard);
    const bool first = conan::trains(gradients, conv1_);
    const Matrix d = first ? context.scratch.matrix(inner.rows, inner.cols) : Matrix{};
    convolve_backward(context, conv2_, inner, plan.second_taps, Activation::gelu_erf, given.embeddings, d, gradients);
    if (first) convolve_backward(context, conv1_, heard, plan.first_taps, Activation::gelu_erf, d.slice(0, d.rows - 1), {}, gradients);
  }

 protected:
  bool stem_trains(const Gradients& gradients) const override { return conan::trains(gradients, conv1_) || conan::trains(gradients, conv2_); }

 private:
  /// Which rows every output of the convolutions looks at, and where it stands in its window.
  struct Plan {
    std::vector<int32_t> first_taps, second_taps, places, offsets{0};
  };

  Plan plan_of(const Sounds& sounds) const {
    Plan plan;
    const auto zero = int32_t(sounds.frame_count());  // the row after the last
    int32_t begin = 0;
    for (int32_t frames : sounds.frames)
      for (const int32_t clip_end = begin + frames; begin < clip_end;) {
        const auto end = int32_t(std::min<int64_t>(clip_end, begin + 2 * max_positions_));
        for (int32_t t = begin; t < end; ++t)
          for (int32_t k = t - 1; k <= t + 1; ++k) plan.first_taps.push_back(k < begin || k >= end ? zero : k);
        for (int32_t t = begin; t < end; t += 2) {
          for (int32_t k = t - 1; k <= t + 1; ++k) plan.second_taps.push_back(k < begin || k >= end ? zero : k);
          plan.places.push_back((t - begin) / 2);
        }
        plan.offsets.push_back(int32_t(plan.places.size()));
        begin = end;
      }
    return plan;
  }

  /// [T + 1, hidden], the last row zero; `heard` takes its input.
  Matrix first_convolution(Context& context, const Sounds& sounds, const Plan& plan, Matrix* heard) const {
    const int64_t T = sounds.frame_count();
    const Matrix x = context.scratch.matrix(T + 1, bins_), y = context.scratch.matrix(T + 1, outputs_);
    copy(context, {const_cast<float*>(sounds.features), T, bins_, bins_}, x.slice(0, T));
    for (const Matrix& each : {x, y}) clear(context, each.slice(T, 1));
    convolve(context, conv1_, x, plan.first_taps, Activation::gelu_erf, {}, y.slice(0, T));
    if (heard) *heard = x;
    return y;
  }

  Convolution conv1_, conv2_;
  int64_t max_positions_ = 0;
  Values positions_;
};

}  // namespace

const AudioArchitecture audio_whisper = {
    {"whisper", "whisper_encoder"},
    "conv1.weight",
    [](Context& context, const ConfigReader& config, WeightLoader& loader, WeightFormat format) -> std::unique_ptr<AudioEncoder> {
      return std::make_unique<Whisper>(context, config, loader, format);
    }};

}  // namespace conan
