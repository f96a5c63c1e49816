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
    const Plan plan = plan_of(sounds);
    const int64_t C = blocks_->config().hidden, N = plan.offsets.back();
    const Matrix features = context.scratch.matrix(N, outputs_);
    Arena::Scope scope(context.scratch);
    const Matrix x = context.scratch.matrix(N, C);
    int64_t done = 0;
    for (size_t first = 0; first < plan.chunks.size(); first += kTogether) {
      Arena::Scope own(context.scratch);
      const size_t count = std::min(kTogether, plan.chunks.size() - first);
      const Stem stem = stem_of(context, sounds, plan.chunks.data() + first, count);
      const auto made = int64_t(stem.places.size());
      const Matrix place = context.scratch.matrix(made, C);
      context.ops.gather(context, {{const_cast<float*>(positions_.data()), chunk_tokens(chunk_), C, C}, place, stem.places.data()});
      convolve(context, out_, stem.grids.back(), stem.taken, Activation::none, place, x.slice(done, made));
      done += made;
    }
    const Matrix last = blocks_->forward(context, input_of(plan.offsets, x), std::nullopt, observer);
    context.ops.for_rows(context, N, 2 * C + outputs_, [&](Context& own, int64_t row, int64_t count) {
      Arena::Scope inner_scope(own.scratch);
      const Matrix h = own.scratch.matrix(count, C);
      layer(own, *proj1_, proj1_bias_, activation_, last.slice(row, count), h);
      layer(own, *proj2_, proj2_bias_, Activation::none, h, features.slice(row, count));
    });
    return features;
  }

  void backward(Context& context, const Sounds& sounds, const Tape& tape, const Matrix& dy, Gradients& gradients) const override {
    Arena::Scope scope(context.scratch);
    const Plan plan = plan_of(sounds);
    const int64_t C = blocks_->config().hidden, N = plan.offsets.back();
    const bool stem = stem_trains(gradients);
    // From the features to the last block's states, which are what the tape ends with, normalised.
    const Matrix last = context.scratch.matrix(N, C), u = context.scratch.matrix(N, C), h = context.scratch.matrix(N, C);
    blocks_->finish(context, tape.states.back(), last);
    layer(context, *proj1_, proj1_bias_, Activation::none, last, u);
    context.ops.activate(context, {activation_, false, u, h});
    gradients.linear(context, *proj2_, proj2_bias_, dy, h);
    linear_input(context, gradients, *proj2_, dy, h);
    context.ops.activate_backward(context, {activation_, false, u, h, u});
    gradients.linear(context, *proj1_, proj1_bias_, u, last);
    linear_input(context, gradients, *proj1_, u, h);
    const InputGradients given = blocks_->backward(context, input_of(plan.offsets, {}), tape, h, gradients, stem);
    if (!stem) return;
    int64_t done = 0;
    for (size_t first = 0; first < plan.chunks.size(); first += kTogether) {
      Arena::Scope own(context.scratch);
      const size_t count = std::min(kTogether, plan.chunks.size() - first);
      const Stem made = stem_of(context, sounds, plan.chunks.data() + first, count);
      const auto tokens = int64_t(made.places.size());
      Matrix d = context.scratch.matrix(made.grids.back().rows, made.grids.back().cols);
      convolve_backward(context, out_, made.grids.back(), made.taken, Activation::none, given.embeddings.slice(done, tokens), d, gradients);
      for (size_t i = convolutions_.size(); i-- > 0;) {
        const Matrix& x = made.grids[i];
        const Matrix dx = i > 0 ? context.scratch.matrix(x.rows, x.cols) : Matrix{};
        convolve_backward(context, convolutions_[i], x, made.taps[i], Activation::gelu_erf, d.slice(0, d.rows - 1), dx, gradients);
        d = dx;
      }
      done += tokens;
    }
  }

 protected:
  bool stem_trains(const Gradients& gradients) const override {
    return conan::trains(gradients, out_) ||
           std::any_of(convolutions_.begin(), convolutions_.end(), [&](const Convolution& each) { return conan::trains(gradients, each); });
  }
  bool head_trains(const Gradients& gradients) const override {
    return gradients.wants(*proj1_) || gradients.wants(*proj2_) || gradients.wants(proj1_bias_) || gradients.wants(proj2_bias_);
  }

 private:
  struct Chunk {
    int64_t first, frames, padded;  // its own frames, and how many the convolutions see
  };
  static constexpr size_t kTogether = 8;  // chunks: their inner states are 6 MB each in the published size

  static int64_t chunk_tokens(int64_t frames) { return frames == 0 ? 0 : halved(halved(halved(frames))); }

  struct Plan {
    std::vector<Chunk> chunks;
    std::vector<int32_t> offsets{0};  // of attention's windows
  };

  Plan plan_of(const Sounds& sounds) const {
    Plan plan;
    int64_t begin = 0, N = 0;
    for (int32_t frames : sounds.frames) {
      for (int64_t at = 0; at < frames; at += chunk_) {
        const int64_t own = std::min(chunk_, frames - at);
        plan.chunks.push_back({begin + at, own, frames < chunk_ ? own : chunk_});
      }
      begin += frames;
      for (int64_t left = tokens(frames); left > 0; left -= window_) plan.offsets.push_back(int32_t(N += std::min(left, window_)));
    }
    return plan;
  }

  static void layer(Context& context, const Weight& weight, const Values& bias, Activation activation, const Matrix& x, const Matrix& y) {
    LinearArgs args;
    args.x = x;
    args.weight = &weight;
    args.bias = bias.data();
    args.activation = activation;
    args.y = y;
    context.ops.linear(context, args);
  }

  /// Chunks through the convolutions: what goes into each and comes out of the last, [time * frequency + 1, channels] with a last row of
  /// zeros; the rows each output looks at; and which of the last make a token, at which place of its chunk.
  struct Stem {
    std::vector<Matrix> grids;
    std::vector<std::vector<int32_t>> taps;
    std::vector<int32_t> taken, places;
  };

  Stem stem_of(Context& context, const Sounds& sounds, const Chunk* chunks, size_t count) const {
    Stem stem;
    std::vector<int64_t> times;
    int64_t frequencies = bins_, rows = 0;
    for (size_t i = 0; i < count; ++i) times.push_back(chunks[i].padded), rows += chunks[i].padded * bins_;
    stem.grids.push_back(context.scratch.contiguous(rows + 1, 1));
    const auto line = [](float* values, int64_t count) -> Matrix { return {values, 1, count, count}; };
    clear(context, line(stem.grids[0].data, rows + 1));
    for (size_t i = 0, at = 0; i < count; at += size_t(chunks[i++].padded * bins_)) {
      const int64_t numbers = chunks[i].frames * bins_;
      copy(context, line(const_cast<float*>(sounds.features) + chunks[i].first * bins_, numbers), line(stem.grids[0].data + at, numbers));
    }
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
      clear(context, smaller.slice(made, 1));
      convolve(context, convolution, stem.grids.back(), taps, Activation::gelu_erf, {}, smaller.slice(0, made));
      stem.grids.push_back(smaller);
      stem.taps.push_back(std::move(taps));
      rows = made, frequencies = next;
    }
    int64_t begin = 0;
    for (size_t i = 0; i < count; begin += times[i++])
      for (int64_t t = 0; t < chunk_tokens(chunks[i].frames); ++t) {
        for (int64_t f = 0; f < frequencies; ++f) stem.taken.push_back(int32_t((begin + t) * frequencies + f));
        stem.places.push_back(int32_t(t));
      }
    return stem;
  }

  std::vector<Convolution> convolutions_;
  Convolution out_;
  std::vector<float> positions_;  // [tokens of a chunk, hidden]
  int64_t chunk_ = 0, window_ = 0;
  Activation activation_ = Activation::gelu_erf;
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
