// A model directory made ready to embed: the transformer (and before it the vision tower, the encoder of sound and its projector, where
// there are any), then pooling, dense layers and normalisation as sentence-transformers' modules list them.
#pragma once
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "models/audio/encoder.h"
#include "models/projector.h"
#include "models/transformer.h"
#include "models/vision.h"

namespace conan {

struct DenseOptions {
  std::string directory;  // of its model.safetensors with linear.weight (and linear.bias)
  int64_t inputs = 0, outputs = 0;
  bool bias = true;
  Activation activation = Activation::tanh;
};

struct ModelOptions {
  std::string directory;
  std::vector<std::string> adapters;  // PEFT directories, applied in order
  std::string dtype = "auto";         // auto, float32, bfloat16, float16, int8
  int threads = 0;                    // 0: ThreadPool::default_threads()
  std::string device = "cpu";         // as backend() takes it
  Pooling pooling = Pooling::mean;
  std::vector<DenseOptions> dense;
};

/// What a batch holds beside text. Every run of image or video tokens belongs to the next of the pictures, and has a token for each
/// merge x merge of its patches; every run of audio tokens belongs to the next of the sounds, and has a token for each of its features.
struct Media {
  Pictures pictures;
  Sounds sounds;
};

class TextModel {
 public:
  explicit TextModel(const ModelOptions& options, WeightObserver* observer = nullptr);

  const TransformerConfig& config() const { return transformer_->config(); }
  int64_t dimensions() const { return dimensions_; }
  WeightFormat format() const { return format_; }
  int threads() const { return context_->threads; }
  const char* backend() const { return context_->ops.name; }
  /// Whether passes are computed elsewhere, and the thread that asks for one waits.
  bool waits() const { return context_->ops.finish != nullptr; }
  Dtype checkpoint_dtype() const { return checkpoint_dtype_; }
  const std::vector<std::string>& unused_tensors() const { return unused_; }
  size_t memory_bytes() const;

  /// Null where the model takes no pictures, or no sound.
  const VisionTower* vision() const { return vision_.get(); }
  const AudioEncoder* audio() const { return audio_.get(); }
  int32_t audio_token() const { return audio_token_; }

  /// One vector per sequence into out [B, dimensions]: the first `dimensions` channels, to length 1 if `normalize`.
  void embed(const TokenBatch& batch, const Media& media, bool normalize, int64_t dimensions, float* out);

  /// Hidden states [T, hidden] before the first layer (0), after each, and (layers + 1) after the final norm. For tests.
  std::vector<std::vector<float>> hidden_states(const TokenBatch& batch, const Media& media);
  /// Of the vision tower: the patches [N, hidden] before the first block and after each, then tokens, then deepstack. For tests.
  std::vector<std::vector<float>> vision_states(const Pictures& pictures);
  /// Features [sum of tokens, encoder's outputs], to be handed over as encoded sounds later.
  std::vector<float> encode(const Sounds& sounds);
  /// Of the encoder of sound: before the first block and after each, then its features, then projected. For tests.
  std::vector<std::vector<float>> audio_states(const Sounds& sounds);

  /// A pass that backward() can follow. Memory: the context's scratch, until the caller's Scope ends.
  struct TrainingPass {
    TokenBatch batch;
    TransformerInput input;
    Tape tape;
    Matrix final;                 // hidden states [T, hidden], or of the pooled rows alone [B, hidden]
    std::vector<Matrix> dense;    // inputs of the dense layers
    Matrix heard;                 // features of the encoder of sound, the projector's input
    Resident given;               // they, where they were encoded before: they are read on the way back once more
    std::vector<size_t> sources;  // of input.replaced: 0 sounds, 1 pictures
    const Gradients* gradients = nullptr;
    const Media* media = nullptr;
    Tape heard_tape, seen_tape;  // of the towers, where they train
  };
  Context& context() { return *context_; }
  std::mutex& running() { return running_; }
  /// Whether anything trains that an input with such media goes through.
  bool trains(const Media& media, const Gradients& gradients) const;
  /// Vectors [B, dimensions], before they are brought to length 1.
  Matrix infer(const TokenBatch& batch, const Media& media);
  Matrix forward(TrainingPass& pass, const TokenBatch& batch, const Media& media, const Gradients& gradients);
  /// `dy` [B, dimensions] is overwritten.
  void backward(TrainingPass& pass, const Matrix& dy, Gradients& gradients);
  /// Once weights have changed in their place.
  void refresh() { transformer_->refresh(); }

  /// Makes a running embed() end with ABORTED at the next layer. Holds until the next call of embed().
  void cancel() { cancelled_ = true; }

 private:
  std::mutex running_;  // one pass at a time: they share scratch memory
  std::atomic<bool> cancelled_{false};
  std::unique_ptr<Context> context_;
  std::unique_ptr<Checkpoint> checkpoint_;  // the embedding tables stay mapped
  std::vector<std::unique_ptr<Checkpoint>> dense_checkpoints_;
  WeightObserver* observer_;
  std::vector<std::unique_ptr<Adapter>> adapters_;
  std::vector<std::unique_ptr<WeightLoader>> loaders_;  // one for each part of the model
  std::vector<Resident> residents_;                     // small tensors
  std::unique_ptr<VisionTower> vision_;
  std::unique_ptr<AudioEncoder> audio_;
  std::unique_ptr<Projector> projector_;
  int32_t audio_token_ = -1;
  std::unique_ptr<Transformer> transformer_;
  WeightLoader& open_loader(const std::string& probe);
  void load_audio(const Json& config, const std::string& path);
  bool stands_for_picture(int32_t id) const;
  bool stands_for_sound(int32_t id) const;
  TransformerInput input_of(const TokenBatch& batch, const Media& media, TrainingPass* pass = nullptr);
  /// Whether anything in front of the language model trains that such media go through.
  bool trains_in_front(const Media& media, const Gradients& gradients) const;
  struct Dense {
    std::unique_ptr<Weight> weight;
    Values bias;
    Activation activation;
  };
  Matrix apply(const Dense& dense, const Matrix& x);
  Matrix finished(const TokenBatch& batch, const Media& media, bool normalize, int64_t dimensions);
  /// A pass over few tokens with these lengths, once it has come some times.
  struct Repeated {
    std::unique_ptr<Recording> recording;
    Matrix vectors;    // of the last one
    int64_t seen = 0;  // how often; negative: it cannot be recorded
    int64_t last = 0;  // the number of the last pass
  };
  Repeated* repeated(const TokenBatch& batch, const Media& media, bool normalize, int64_t dimensions);
  std::map<std::vector<int32_t>, Repeated> repeated_;  // by lengths and what is wanted
  int64_t moves_ = 0;                                  // of the memory that they read and write
  int64_t passes_ = 0;
  std::vector<Dense> dense_;
  Pooling pooling_;
  WeightFormat format_ = WeightFormat::f32;
  Dtype checkpoint_dtype_ = Dtype::f32;
  int64_t dimensions_ = 0;
  std::vector<std::string> unused_;
};

}  // namespace conan
