// The audio tower of Qwen3-Omni (Xu et al. 2025): chunks of a second through three convolutions over frequency and time, positions
// that begin anew in every chunk, attention within windows of several chunks, two layers at the end.
// Where the reference pads a clip to what shares its batch, the reference on the clip alone is the definition here: a clip of
// less than one chunk is not padded, the tail of a longer one is padded to a whole chunk.
#include <algorithm>

#include "base/error.h"
#include "models/audio/encoder.h"

namespace conan {

namespace {

int64_t halved(int64_t n) { return (n - 1) / 2 + 1; }  // what a convolution of stride 2 makes of n > 0

class Qwen3Omni : public AudioEncoder {
 public:
  Qwen3Omni(Context& context, const ConfigReader& config, WeightLoader& loader, WeightFormat format) {
    TransformerConfig blocks = read_audio_blocks(config, "ln_post", true);
    const int64_t C = blocks.hidden, inner = config.integer("downsample_hidden_size");
    bins_ = config.integer("num_mel_bins");
    outputs_ = config.integer("output_dim");
    activation_ = blocks.activation;
    chunk_ = 2 * config.integer("n_window");
    window_ = chunk_tokens(chunk_) * (config.integer("n_window_infer") / chunk_);
    if (window_ < 1)
      fail("CONFIG_INVALID", config.subject(), ": \"n_window_infer\": expected at least 2 * n_window, got ", config.integer("n_window_infer"));
    convolutions_.push_back(load_convolution(context, loader, WeightFormat::f32, "conv2d1", {inner, 1, 3, 3}, 1));
    for (const char* name : {"conv2d2", "conv2d3"})
      convolutions_.push_back(load_convolution(context, loader, format, name, {inner, inner, 3, 3}, inner));
    // A product over all channels and frequencies of a time, which are the taps of a convolution.
    out_ = load_convolution(context, loader, format, "conv_out", {C, inner * halved(halved(halved(bins_)))}, inner);
    positions_ = sinusoids(chunk_tokens(chunk_), C);
    blocks_ = std::make_unique<Transformer>(context, std::move(blocks), loader, format, std::nullopt);
    proj1_ = loader.pack(context, {"proj1"}, {C}, C, format);
    proj1_bias_ = loader.take_values("proj1.bias", {C});
    proj2_ = loader.pack(context, {"proj2"}, {outputs_}, C, format);
    proj2_bias_ = loader.take_values("proj2.bias", {outputs_});
    for (const char* part : {"conv", "proj"}) loader.require_all_used(part);
  }

  int64_t tokens(int64_t frames) const override { return frames / chunk_ * chunk_tokens(chunk_) + chunk_tokens(frames % chunk_); }

  size_t weight_bytes() const override {
    size_t total = blocks_->weight_bytes() + out_.weight->bytes + proj1_->bytes + proj2_->bytes;
    for (const Convolution& convolution : convolutions_) total += convolution.weight->bytes;
    return total;
  }

  Matrix forward(Context& context, const Sounds& sounds, const Transformer::Observer& observer) const override {
    const int64_t C = blocks_->config().hidden;
    std::vector<int32_t> offsets{0};
    std::vector<Chunk> chunks;
    int64_t begin = 0, N = 0;
    for (int32_t frames : sounds.frames) {
      for (int64_t at = 0; at < frames; at += chunk_) {
        const int64_t own = std::min(chunk_, frames - at);
        chunks.push_back({begin + at, own, frames < chunk_ ? own : chunk_});
      }
      begin += frames;
      for (int64_t left = tokens(frames); left > 0; left -= window_) offsets.push_back(int32_t(N += std::min(left, window_)));
    }
    const Matrix features = context.scratch.matrix(N, outputs_);
    Arena::Scope scope(context.scratch);
    const Matrix x = context.scratch.matrix(N, C);
    int64_t done = 0;
    for (size_t first = 0; first < chunks.size(); first += kTogether) {
      const size_t count = std::min(kTogether, chunks.size() - first);
      done += stem(context, sounds, chunks.data() + first, count, x, done);
    }
    TransformerInput input;
    input.batch.offsets = offsets.data();
    input.batch.sequences = int(offsets.size()) - 1;
    input.embeddings = x;
    const Matrix last = blocks_->forward(context, input, std::nullopt, observer);
    context.ops.for_rows(context, N, 2 * C + outputs_, [&](Context& own, int64_t row, int64_t count) {
      Arena::Scope inner_scope(own.scratch);
      LinearArgs args;
      args.x = last.slice(row, count);
      args.weight = proj1_.get();
      args.bias = proj1_bias_.data();
      args.activation = activation_;
      args.y = own.scratch.matrix(count, C);
      own.ops.linear(own, args);
      args.x = args.y;
      args.weight = proj2_.get();
      args.bias = proj2_bias_.data();
      args.activation = Activation::none;
      args.y = features.slice(row, count);
      own.ops.linear(own, args);
    });
    return features;
  }

 private:
  struct Chunk {
    int64_t first, frames, padded;  // its own frames, and how many the convolutions see
  };
  static constexpr size_t kTogether = 8;  // chunks: their inner states are 6 MB each in the published size

  static int64_t chunk_tokens(int64_t frames) { return frames == 0 ? 0 : halved(halved(halved(frames))); }

  /// The tokens of `count` chunks into rows of x from `done` on; returns how many.
  int64_t stem(Context& context, const Sounds& sounds, const Chunk* chunks, size_t count, const Matrix& x, int64_t done) const {
    Arena::Scope scope(context.scratch);
    // A grid of time and frequency for each chunk, time by time; then a row of zeros.
    std::vector<int64_t> times;
    int64_t frequencies = bins_, rows = 0;
    for (size_t i = 0; i < count; ++i) times.push_back(chunks[i].padded), rows += chunks[i].padded * bins_;
    Matrix grid = context.scratch.contiguous(rows + 1, 1);
    std::fill_n(grid.data, rows + 1, 0.f);
    for (size_t i = 0, at = 0; i < count; at += size_t(chunks[i++].padded * bins_))
      std::copy_n(sounds.features + chunks[i].first * bins_, chunks[i].frames * bins_, grid.data + at);
    for (const Convolution& convolution : convolutions_) {
      const int64_t next = halved(frequencies);
      std::vector<int32_t> taps;
      int64_t begin = 0, made = 0;
      for (int64_t& time : times) {
        for (int64_t t = 0; t < halved(time); ++t)
          for (int64_t f = 0; f < next; ++f)
            for (int64_t df = 2 * f - 1; df <= 2 * f + 1; ++df)
              for (int64_t dt = 2 * t - 1; dt <= 2 * t + 1; ++dt) {
                const bool inside = df >= 0 && df < frequencies && dt >= 0 && dt < time;
                taps.push_back(int32_t(inside ? begin + dt * frequencies + df : rows));
              }
        begin += time * frequencies;
        time = halved(time);
        made += time * next;
      }
      const Matrix smaller = context.scratch.matrix(made + 1, convolution.weight->rows);
      clear_row(smaller, made);
      convolve(context, convolution, grid, taps, Activation::gelu_erf, {}, smaller.slice(0, made));
      grid = smaller, rows = made, frequencies = next;
    }
    std::vector<int32_t> taken, places;
    int64_t begin = 0;
    for (size_t i = 0; i < count; begin += times[i++])
      for (int64_t t = 0; t < chunk_tokens(chunks[i].frames); ++t) {
        for (int64_t f = 0; f < frequencies; ++f) taken.push_back(int32_t((begin + t) * frequencies + f));
        places.push_back(int32_t(t));
      }
    const auto made = int64_t(places.size()), C = x.cols;
    const Matrix place = context.scratch.matrix(made, C);
    context.ops.gather(context, {{const_cast<float*>(positions_.data()), chunk_tokens(chunk_), C, C}, place, places.data()});
    convolve(context, out_, grid, taken, Activation::none, place, x.slice(done, made));
    return made;
  }

  std::vector<Convolution> convolutions_;
  Convolution out_;
  std::vector<float> positions_;  // [tokens of a chunk, hidden]
  int64_t chunk_ = 0, window_ = 0;
  Activation activation_ = Activation::gelu_erf;
  std::unique_ptr<Transformer> blocks_;
  std::unique_ptr<Weight> proj1_, proj2_;
  Values proj1_bias_, proj2_bias_;
};

}  // namespace

const AudioArchitecture audio_qwen3_omni = {
    {"qwen3_omni_moe_audio_encoder"},
    "conv2d1.weight",
    [](Context& context, const ConfigReader& config, WeightLoader& loader, WeightFormat format) -> std::unique_ptr<AudioEncoder> {
      return std::make_unique<Qwen3Omni>(context, config, loader, format);
    }};

}  // namespace conan
