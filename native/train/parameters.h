// What trains: parameters with their gradients and moments, dense or of low rank (LoRA), and how they reach the weights of a model
// that was loaded with this as observer. Values are f32 whatever the checkpoint holds, and lie with the device that trains them: host code
// looks at them once it has finished.
#pragma once
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "models/gradients.h"
#include "train/packed.h"

namespace conan::train {

struct Parameter {
  std::string name;
  std::vector<int64_t> shape;
  std::span<float> value, gradient, first, second;  // value, its gradient, AdamW's moments: parts of a block

  int64_t size() const { return int64_t(value.size()); }
};

/// Parameters that lie one behind the other, so that an operation takes them all: they may be many and small.
struct Block {
  Floats value, gradient, first, second;
  int64_t used = 0;    // numbers; zeros between parameters
  bool decays = true;  // biases and norms do not
};

/// W + scale * B A, with A [rank, cols] and B [rows, rank] (Hu et al. 2021); `tensor` is W's name in the checkpoint.
struct LowRank {
  std::string tensor;
  int64_t rank = 0;
  float scale = 1;
  Parameter *a = nullptr, *b = nullptr;
  std::vector<float> mask;  // of A's columns, in a step with dropout; else empty
};

struct TrainableOptions {
  std::vector<std::string> dense;  // names of tensors
  std::vector<LowRank> low_rank;   // tensor, rank and scale
  uint64_t seed = 0;               // of A and of dropout
  /// Share of A's columns left out of a step. The change is part of the weights here, so that a mask serves all tokens of a step (PEFT
  /// draws one for every token).
  double dropout = 0;
};

class Parameters : public WeightObserver, public Gradients {
 public:
  Parameters(const TrainableOptions& options, const OperationTable& table);

  /// Fails with INVALID_OPTION where something that was to train was never asked for: the model has no such tensor.
  void require_found() const;
  const std::vector<std::unique_ptr<Parameter>>& all() const { return parameters_; }
  const std::vector<LowRank>& low_rank() const { return low_rank_; }
  std::deque<Block>& blocks() { return blocks_; }
  int64_t count() const;

  void clear_gradients();
  /// Draws the masks of a step, where there is dropout.
  void drop(Context& context, int64_t step);
  /// Adds the gradients of anchor / 2 * |W - W0|^2 over all that trains, W0 being what training began with.
  void pull_back(Context& context, double anchor);
  /// Hands gradients of small tensors, which models sum up in their own layout, over to their parameters.
  void collect(Context& context);
  /// New values to all weights made from them.
  void refresh(Context& context);

  // As the model loads.
  TensorView use(const std::string& name, const TensorView& stored) override;
  WeightFormat format(const WeightParts& parts, WeightFormat wanted) override;
  void packed(Weight& weight, const WeightParts& parts, const WeightSource& source, const Checkpoint& checkpoint) override;
  void taken(const Values& values, const ValuesPart& part) override;

  // As it goes back.
  bool wants(const Weight& weight) const override;
  bool wants(const Values& values) const override;
  bool wants(const TensorView& table) const override;
  const Weight* transposed(Context& context, const Weight& weight) override { return &packed_.transposed(context, weight); }
  void linear(Context& context, const Weight& weight, const Values& bias, const Rows& dy, const Rows& x) override;
  float* values(const Values& values) override;
  Matrix table(const TensorView& table) override;

 private:
  struct Use {
    Weight* weight = nullptr;
    WeightParts parts;
    std::vector<TensorView> stored;  // where a part does not train
    bool trains = false;
  };
  struct SmallUse {
    Values values;
    std::vector<ValuesPart> parts;
    Floats gradient;
    bool trains = false;
  };

  Parameter* dense(const std::string& name) const;
  const LowRank* low_rank(const std::string& name) const;
  bool trains(const std::string& name) const { return dense(name) || low_rank(name); }
  Parameter* add(const std::string& name, const std::vector<int64_t>& shape, bool decays);
  void repack(Context& context);
  /// factor * x [rows, cols], in f32 and scratch memory.
  Matrix scaled(Context& context, const TensorView& x, float factor);
  /// The same of a matrix that trains; itself where the factor is 1, so that nobody may change it.
  Matrix scaled(Context& context, std::span<float> values, int64_t rows, int64_t cols, float factor);
  /// scale * A with the columns of this step.
  Matrix scaled_a(Context& context, const LowRank& low);
  /// A tensor as it is stored. Needed at every step: where the device is not the host, it keeps it.
  const TensorView& kept(Context& context, const std::string& name);
  /// W + scale * B A of a tensor, in f32 and scratch memory.
  Matrix effective(Context& context, const LowRank& low);
  WeightSource source_of(Context& context, const Use& use, std::vector<float>& reordered);
  /// Of rows [first, first + dy's columns) of the tensor.
  void low_rank_gradient(Context& context, const LowRank& low, int64_t first, const Rows& dy, const Rows& x, int64_t channels, bool reduced);
  void add_reordered(Context& context, LinearBackwardArgs args, int64_t channels, const LowRank* low, Parameter& parameter);

  std::vector<std::unique_ptr<Parameter>> parameters_;
  std::deque<Block> blocks_;
  std::map<std::string, Parameter*> dense_;  // by tensor; null until the model asks for it
  std::vector<LowRank> low_rank_;
  std::map<std::string, size_t> low_rank_index_;
  std::map<std::string, TensorView> stored_;  // of what trains, as the checkpoint has it
  std::vector<std::unique_ptr<std::vector<float>>> loading_;
  std::map<const Weight*, Use> uses_;
  PackedMatrices packed_;
  std::map<std::string, Resident> residents_;  // of stored tensors, see kept()
  std::map<const void*, SmallUse> small_;
  std::vector<int32_t> rows_;  // 0, 1, 2, ...
  uint64_t seed_;
  double dropout_;
  const OperationTable& table_;
};

}  // namespace conan::train
