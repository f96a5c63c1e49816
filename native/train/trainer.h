// One model in training: steps of a loss over a batch of any size (GradCache, Gao et al. 2021), AdamW, and the state between steps.
#pragma once
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "models/text_model.h"
#include "train/loss.h"
#include <optional>

#include "train/parameters.h"

namespace conan::train {

struct OptimizerOptions {
  double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;
  double weight_decay = 0.01;  // decoupled (Loshchilov & Hutter 2019); not on biases and norms
  double clip = 1;             // largest norm of all gradients together; 0: none
  double anchor = 0;           // pull towards the weights that training began with: that of anchor / 2 * |W - W0|^2 (L2-SP, Li et al. 2018)
  /// Memory that a pass may take to remember what it would compute again otherwise, which is a third of the work. Unless given: 1 GiB, or on
  /// another device half of what is free once the model is there.
  std::optional<size_t> activation_bytes;
};

/// Part of a batch that goes through the model at one time.
struct Chunk {
  std::vector<int32_t> ids, offsets;
  Media media;

  TokenBatch view() const { return {ids.data(), offsets.data(), int(offsets.size()) - 1}; }
};

enum class Loss { contrastive, graded, distillation };

struct StepOptions {
  double learning_rate = 0;
  Loss loss = Loss::contrastive;
  Contrastive contrastive;
  Graded grades;
  Distillation distillation;
  Matryoshka matryoshka;
  /// Chunks that learn are all remembered at a time where they have no more tokens than this together; else each goes through the model
  /// twice, and one at a time is remembered (GradCache).
  int64_t chunk_tokens = 0;
  double weight = 1;   // of this batch's gradient, where several make one step
  bool update = true;  // false: only add to the gradients
};

struct StepResult {
  double loss = 0, gradient_norm = 0;
};

class Trainer {
 public:
  Trainer(const ModelOptions& model, const TrainableOptions& trainable, const OptimizerOptions& optimizer);

  TextModel& model() { return *model_; }
  const Parameters& parameters() const { return parameters_; }

  /// LOSS_NOT_FINITE names the first tensor whose gradient is not a number; nothing has changed then.
  StepResult step(const std::vector<Chunk>& chunks, const StepOptions& options);

  /// Values, moments and the number of steps, to go on from bit for bit.
  void save_state(const std::string& path) const;
  void load_state(const std::string& path);
  /// The trained tensors alone, under the checkpoint's names, or as PEFT names them; in f32.
  void save_tensors(const std::string& path) const;

 private:
  double loss_of(const Matrix& vectors, const StepOptions& options, const Matrix& gradient);
  /// Vectors of texts, by their token ids, on their way to the host.
  struct Coming {
    std::vector<std::string> keys;
    std::unique_ptr<Arrival> arrival;
  };
  void infer(const Chunk& chunk, const Matrix& out, std::vector<Coming>& coming);
  void remember(const std::vector<Coming>& coming);
  void update(const StepOptions& options, double factor);
  TextModel::TrainingPass begin_pass(size_t budget);
  void end_pass(TextModel::TrainingPass& pass);

  Parameters parameters_;
  std::unique_ptr<TextModel> model_;
  OptimizerOptions optimizer_;
  PackedMatrices packed_;
  std::vector<std::unique_ptr<Arena>> memory_[3];  // of passes that have ended: of the language model and the towers
  /// Vectors of texts that nothing that trains has a part in, by their token ids: they never change.
  std::unordered_map<std::string, std::vector<float>> known_;
  int64_t steps_ = 0;
};

}  // namespace conan::train
