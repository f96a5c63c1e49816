// Where backward passes leave the gradients of weights, and where they find the weights' other packing. What trains, and how (dense,
// low rank), is known behind this interface only (train/parameters.h).
#pragma once
#include "models/weights.h"

namespace conan {

/// A matrix in either of its forms, or in both.
struct Rows {
  Matrix wide;
  Bf16Matrix narrow;

  Rows() = default;
  Rows(const Matrix& wide) : wide(wide) {}
  Rows(const Bf16Matrix& narrow) : narrow(narrow) {}
  Rows(const Matrix& wide, const Bf16Matrix& narrow) : wide(wide), narrow(narrow) {}
  explicit operator bool() const { return wide.data || narrow.data; }
  int64_t rows() const { return narrow.data ? narrow.rows : wide.rows; }
  int64_t cols() const { return narrow.data ? narrow.cols : wide.cols; }
  Rows columns(int64_t first, int64_t count) const { return {wide.data ? wide.columns(first, count) : Matrix{}, narrow.columns(first, count)}; }
  Rows slice(int64_t first, int64_t count) const { return {wide.data ? wide.slice(first, count) : Matrix{}, narrow.slice(first, count)}; }
};

class Gradients {
 public:
  virtual ~Gradients() = default;

  virtual bool wants(const Weight& weight) const = 0;
  virtual bool wants(const Values& values) const = 0;
  virtual bool wants(const TensorView& table) const = 0;
  /// The weight for products with gradients: dx = dy W. Until the next call.
  virtual const Weight* transposed(Context& context, const Weight& weight) = 0;

  /// For y = x W^T + bias and the gradient dy of y: those of W and bias are added to what is there. What does not train costs nothing.
  virtual void linear(Context& context, const Weight& weight, const Values& bias, const Rows& dy, const Rows& x) = 0;
  /// Where the gradient of a small tensor is summed up, [size]; null where it does not train.
  virtual float* values(const Values& values) = 0;
  /// The same for an embedding table [V, C]; no data where it does not train.
  virtual Matrix table(const TensorView& table) = 0;
};

/// dx = dy W into x's place; `weight` as packed for the forward pass.
inline void linear_input(Context& context, Gradients& gradients, const Weight& weight, const Rows& dy, const Rows& dx, const Matrix& residual = {}) {
  LinearArgs args;
  args.x = dy.wide, args.narrow_x = dy.narrow;
  args.weight = gradients.transposed(context, weight);
  args.residual = residual;
  args.y = dx.wide, args.narrow_y = dx.narrow;
  context.ops.linear(context, args);
}

}  // namespace conan
