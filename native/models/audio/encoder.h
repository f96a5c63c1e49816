// Encoders of sound: log-mel frames in, features for a projector out. One class per family behind one interface; a line in
// encoder.cpp makes another one known.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "models/transformer.h"

namespace conan {

/// Clips of a batch, one after the other: a clip's log-mel frames, or, `encoded`, what the encoder once made of them.
struct Sounds {
  const float* features = nullptr;  // [sum of frames, bins], or [sum of frames, outputs]
  std::vector<int32_t> frames;
  bool encoded = false;

  int64_t frame_count() const {
    int64_t n = 0;
    for (int32_t each : frames) n += each;
    return n;
  }
};

class AudioEncoder {
 public:
  virtual ~AudioEncoder() = default;
  int64_t bins() const { return bins_; }        // of a frame
  int64_t outputs() const { return outputs_; }  // channels of a feature
  /// Features of a clip of so many frames.
  virtual int64_t tokens(int64_t frames) const = 0;
  /// [sum of tokens, outputs], clip after clip; each as if it were alone. The memory is the context's scratch. The observer sees the
  /// states before the first block and after each.
  virtual Matrix forward(Context& context, const Sounds& sounds, const Transformer::Observer& observer = {}) const = 0;
  virtual size_t weight_bytes() const = 0;

  bool trains(const Gradients& gradients) const;
  /// As observer of forward(): keeps what backward() needs.
  Transformer::Observer record(Context& context, Tape& tape, const Gradients& gradients) const;
  /// Gradients of all that trains, for `dy` [sum of tokens, outputs], which is overwritten.
  virtual void backward(Context& context, const Sounds& sounds, const Tape& tape, const Matrix& dy, Gradients& gradients) const = 0;

 protected:
  /// Whether anything before, or behind, the blocks trains.
  virtual bool stem_trains(const Gradients& gradients) const = 0;
  virtual bool head_trains(const Gradients&) const { return false; }
  /// What the blocks are given: attention stays within offsets[b] .. offsets[b + 1], which must outlive it.
  static TransformerInput input_of(const std::vector<int32_t>& offsets, const Matrix& embeddings) {
    TransformerInput input;
    input.batch.offsets = offsets.data();
    input.batch.sequences = int(offsets.size()) - 1;
    input.embeddings = embeddings;
    return input;
  }

  int64_t bins_ = 0, outputs_ = 0;
  std::unique_ptr<Transformer> blocks_;
};

/// What config.json says about sound beside the language model.
struct AudioConfig {
  const Json* encoder = nullptr;  // audio_config
  std::string subject;
  const char* probe = nullptr;  // a tensor that every checkpoint of this encoder has
  int32_t token = 0;            // stands for a feature
};

struct AudioArchitecture {
  std::vector<const char*> model_types;  // audio_config's model_type
  const char* probe;
  std::unique_ptr<AudioEncoder> (*load)(Context&, const ConfigReader&, WeightLoader&, WeightFormat);
};

extern const AudioArchitecture audio_whisper, audio_qwen3_omni;

/// None: a model that takes no sound. UNSUPPORTED_ARCHITECTURE names the encoders there are. `json` must outlive it.
std::optional<AudioConfig> read_audio_config(const Json& json, const std::string& subject);
std::unique_ptr<AudioEncoder> load_audio_encoder(Context& context, const AudioConfig& config, WeightLoader& loader, WeightFormat format);

// ---- what encoders share

/// The blocks of Whisper and its successors: norms before, biases but for keys, attention in both directions.
TransformerConfig read_audio_blocks(const ConfigReader& config, const char* final_norm, bool key_bias);

/// Whisper's sinusoids [positions, channels]: sines in the first half, cosines in the second.
std::vector<float> sinusoids(int64_t positions, int64_t channels);

/// A convolution over rows that each have `channels` values: every output looks at `taps` rows, wherever they lie.
struct Convolution {
  std::unique_ptr<Weight> weight;  // [outputs, taps * channels]
  Values bias;
  int64_t taps = 1, channels = 0;
};

/// `shape` is the stored one, [outputs, channels, taps ...], or [outputs, channels * taps] in the same order; without bias in that case.
Convolution load_convolution(Context& context, WeightLoader& loader, WeightFormat format, const std::string& name, const std::vector<int64_t>& shape,
                             int64_t channels);
/// y[i] = act(sum over taps k of W_k x[rows[i * taps + k]] + bias) + residual[i]. A row beyond the edge is a row of zeros in x.
void convolve(Context& context, const Convolution& convolution, const Matrix& x, const std::vector<int32_t>& rows, Activation activation,
              const Matrix& residual, const Matrix& y);

/// Gradients of that (without residual): of the weights, and of x where dx is there, which is overwritten.
void convolve_backward(Context& context, const Convolution& convolution, const Matrix& x, const std::vector<int32_t>& rows, Activation activation,
                       const Matrix& dy, const Matrix& dx, Gradients& gradients);
inline bool trains(const Gradients& gradients, const Convolution& convolution) {
  return gradients.wants(*convolution.weight) || gradients.wants(convolution.bias);
}

}  // namespace conan
