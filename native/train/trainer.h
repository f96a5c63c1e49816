// One model in training: steps of a loss over a batch of any size (GradCache, Gao et al. 2021), AdamW, and the state between steps.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "models/text_model.h"
#include "train/loss.h"
#include "train/parameters.h"

namespace conan::train {

struct OptimizerOptions {
  double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;
  double weight_decay = 0.01;  // decoupled (Loshchilov & Hutter 2019); not on biases and norms
  double clip = 1;             // largest norm of all gradients together; 0: none
  /// Memory that a pass may take to remember what it would compute again otherwise, which is a third of the work.
  size_t activation_bytes = size_t(1) << 30;
};

/// Part of a batch that goes through the model at one time.
struct Chunk {
  std::vector<int32_t> ids, offsets;
  Media media;

  TokenBatch view() const { return {ids.data(), offsets.data(), int(offsets.size()) - 1}; }
};

struct StepOptions {
  double learning_rate = 0;
  bool graded = false;
  Contrastive contrastive;
  Graded grades;
  Matryoshka matryoshka;
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

  /// NOT_FINITE names the first tensor whose gradient is not a number; nothing has changed then.
  StepResult step(const std::vector<Chunk>& chunks, const StepOptions& options);

  /// Values, moments and the number of steps, to go on from bit for bit.
  void save_state(const std::string& path) const;
  void load_state(const std::string& path);
  /// The trained tensors alone, under the checkpoint's names, or as PEFT names them; in f32.
  void save_tensors(const std::string& path) const;

 private:
  void update(const StepOptions& options, double factor);
  TextModel::TrainingPass begin_pass(bool keep);
  void end_pass(TextModel::TrainingPass& pass);

  Parameters parameters_;
  std::unique_ptr<TextModel> model_;
  OptimizerOptions optimizer_;
  Tape tapes_[3];  // of the language model and the towers: their memory, from pass to pass
  int64_t steps_ = 0;
};

}  // namespace conan::train
