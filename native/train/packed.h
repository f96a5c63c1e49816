// Matrices that change from step to step as packed weights: one of each shape, which is filled again.
#pragma once
#include <map>
#include <memory>
#include <tuple>

#include "ops/ops.h"

namespace conan::train {

class PackedMatrices {
 public:
  /// x [rows, cols], whose rows lie one behind the other, as a weight; until the next of its shape and format.
  const Weight& pack(Context& context, const Matrix& x, WeightFormat format) {
    std::unique_ptr<Weight>& weight = packed_[{int(format), x.rows, x.cols}];
    const WeightSource source{"a matrix of this step", {{x.data, Dtype::f32, {x.rows, x.cols}}}, false};
    if (weight) context.ops.repack(context, source, *weight);
    else weight = context.ops.pack(context, source, format);
    return *weight;
  }

  /// Its transpose, likewise: to turn a weight costs little beside a product with it, and to keep all turned would double a model.
  const Weight& transposed(Context& context, const Weight& weight) {
    std::unique_ptr<Weight>& turned = turned_[{int(weight.format), weight.rows, weight.cols}];
    context.ops.pack_transposed(context, weight, turned);
    return *turned;
  }

  /// Gives back everything where it has come to be many shapes, as of batches of any size.
  void forget_many() {
    constexpr size_t kMost = 16;
    if (packed_.size() > kMost) packed_.clear(), turned_.clear();
  }

 private:
  using Shape = std::tuple<int, int64_t, int64_t>;  // format, rows, columns
  std::map<Shape, std::unique_ptr<Weight>> packed_, turned_;
};

}  // namespace conan::train
