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
    const int64_t T = sounds.frame_count(), C = outputs_;
    std::vector<int32_t> first_taps, second_taps, places, offsets{0};
    const auto zero = int32_t(T);  // the row after the last
    int32_t begin = 0;
    for (int32_t frames : sounds.frames)
      for (const int32_t clip_end = begin + frames; begin < clip_end;) {
        const auto end = int32_t(std::min<int64_t>(clip_end, begin + 2 * max_positions_));
        for (int32_t t = begin; t < end; ++t)
          for (int32_t k = t - 1; k <= t + 1; ++k) first_taps.push_back(k < begin || k >= end ? zero : k);
        for (int32_t t = begin; t < end; t += 2) {
          for (int32_t k = t - 1; k <= t + 1; ++k) second_taps.push_back(k < begin || k >= end ? zero : k);
          places.push_back((t - begin) / 2);
        }
        offsets.push_back(int32_t(places.size()));
        begin = end;
      }
    const auto N = int64_t(places.size());
    const Matrix y = context.scratch.matrix(N, C);
    {
      Arena::Scope scope(context.scratch);
      const Matrix heard = context.scratch.matrix(T + 1, bins_), inner = context.scratch.matrix(T + 1, C), place = context.scratch.matrix(N, C);
      for (int64_t t = 0; t < T; ++t) std::copy_n(sounds.features + t * bins_, bins_, heard.row(t));
      for (const Matrix& x : {heard, inner}) clear_row(x, T);
      convolve(context, conv1_, heard, first_taps, Activation::gelu_erf, {}, inner.slice(0, T));
      context.ops.gather(context, {{const_cast<float*>(positions_.data()), max_positions_, C, C}, place, places.data()});
      convolve(context, conv2_, inner, second_taps, Activation::gelu_erf, place, y);
    }
    TransformerInput input;
    input.batch.offsets = offsets.data();
    input.batch.sequences = int(offsets.size()) - 1;
    input.embeddings = y;
    return blocks_->forward(context, input, std::nullopt, observer);
  }

 private:
  Convolution conv1_, conv2_;
  int64_t max_positions_ = 0;
  Values positions_;
  std::unique_ptr<Transformer> blocks_;
};

}  // namespace

const AudioArchitecture audio_whisper = {
    {"whisper", "whisper_encoder"},
    "conv1.weight",
    [](Context& context, const ConfigReader& config, WeightLoader& loader, WeightFormat format) -> std::unique_ptr<AudioEncoder> {
      return std::make_unique<Whisper>(context, config, loader, format);
    }};

}  // namespace conan
