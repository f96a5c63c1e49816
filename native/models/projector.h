// The projector: two layers between an encoder of sound and the language model. It has a file of its own because it is the one
// thing that Projector Recovery trains.
#pragma once
#include <memory>
#include <vector>

#include "models/config.h"
#include "models/gradients.h"
#include "models/weights.h"

namespace conan {

/// audio_projector_config: {input_size, hidden_size, output_size, hidden_act, bias}.
class Projector {
 public:
  Projector(Context& context, const ConfigReader& config, WeightLoader& loader, WeightFormat format);

  static constexpr const char* kProbe = "audio_projector.linear_1.weight";
  int64_t inputs() const { return first_->cols; }
  int64_t outputs() const { return second_->rows; }
  size_t weight_bytes() const { return first_->bytes + second_->bytes; }

  /// x [N, inputs] -> [N, outputs] = W2 act(W1 x + b1) + b2. The memory is the context's scratch.
  Matrix forward(Context& context, const Matrix& x) const;
  bool trains(const Gradients& gradients) const;
  /// Gradients of the weights, and with `inputs` that of x [N, inputs], for dy [N, outputs].
  Matrix backward(Context& context, const Matrix& x, const Matrix& dy, Gradients& gradients, bool inputs) const;

 private:
  std::unique_ptr<Weight> first_, second_;
  Values first_bias_, second_bias_;
  Activation activation_ = Activation::gelu_erf;
};

}  // namespace conan
