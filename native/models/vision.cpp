#include "models/vision.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"

namespace conan {

VisionTower::VisionTower(Context& context, VisionConfig config, WeightLoader& loader, WeightFormat format) : config_(std::move(config)) {
  const VisionConfig& v = config_;
  const int64_t C = v.tower.hidden;
  // A convolution whose kernel is its stride is a product over the values of a patch.
  const TensorView kernel = loader.take("patch_embed.proj.weight", {C, v.channels, v.temporal_patch, v.patch, v.patch});
  patch_ = loader.pack_view(context, "patch_embed.proj.weight", {kernel.data, kernel.dtype, {C, v.patch_values()}}, format);
  patch_bias_ = loader.take_values("patch_embed.proj.bias", {C});
  positions_ = loader.take_values("pos_embed.weight", {v.grid * v.grid, C});
  blocks_ = std::make_unique<Transformer>(context, v.tower, loader, format, std::nullopt);
  merger_ = load_merger(context, loader, format, "merger", false);
  for (size_t i = 0; i < v.deepstack.size(); ++i)
    deepstack_.push_back(load_merger(context, loader, format, "deepstack_merger_list." + std::to_string(i), true));
  for (const char* part : {"merger.", "deepstack_merger_list.", "patch_embed.", "pos_embed."}) loader.require_all_used(part);
}

VisionTower::Merger VisionTower::load_merger(Context& context, WeightLoader& loader, WeightFormat format, const std::string& name,
                                             bool norm_after) const {
  const int64_t C = config_.tower.hidden, wide = C * config_.merge * config_.merge;
  Merger merger;
  merger.norm_after = norm_after;
  merger.norm_weight = loader.take_values(name + ".norm.weight", {norm_after ? wide : C});
  merger.norm_bias = loader.take_values(name + ".norm.bias", {norm_after ? wide : C});
  merger.in = loader.pack(context, {name + ".linear_fc1"}, {wide}, wide, format);
  merger.in_bias = loader.take_values(name + ".linear_fc1.bias", {wide});
  merger.out = loader.pack(context, {name + ".linear_fc2"}, {config_.outputs}, wide, format);
  merger.out_bias = loader.take_values(name + ".linear_fc2.bias", {config_.outputs});
  return merger;
}

size_t VisionTower::weight_bytes() const {
  size_t total = blocks_->weight_bytes() + patch_->bytes + positions_.size() * sizeof(float) + merger_.in->bytes + merger_.out->bytes;
  for (const Merger& merger : deepstack_) total += merger.in->bytes + merger.out->bytes;
  return total;
}

void VisionTower::check(const Pictures& pictures) const {
  const int64_t m = config_.merge;
  for (const auto& [rows, columns] : pictures.grids)
    if (rows < m || columns < m || rows % m || columns % m)
      fail("INVALID_INPUT", "a picture's grid of patches: expected multiples of ", m, ", got ", rows, " x ", columns);
}

/// x [N, hidden] -> y [N / merge^2, outputs]
void VisionTower::merge(Context& context, const Merger& merger, const Matrix& x, const Matrix& y) const {
  const int64_t unit = config_.merge * config_.merge, wide = x.cols * unit, rows = x.rows / unit;
  Arena::Scope scope(context.scratch);
  Matrix together = context.scratch.contiguous(x.rows, x.cols);
  NormArgs norm;
  norm.eps = config_.tower.norm_eps;
  norm.weight = merger.norm_weight.data();
  norm.bias = merger.norm_bias.data();
  const Matrix joined{together.data, rows, wide, wide};
  if (merger.norm_after) {
    std::vector<int32_t> all(static_cast<size_t>(x.rows));
    std::iota(all.begin(), all.end(), 0);
    context.ops.gather(context, {x, together, all.data()});
    norm.x = norm.y = joined;
  } else {
    norm.x = x;
    norm.y = together;
  }
  context.ops.norm(context, norm);
  Matrix inner = context.scratch.matrix(rows, wide);
  LinearArgs linear;
  linear.x = joined;
  linear.weight = merger.in.get();
  linear.bias = merger.in_bias.data();
  linear.activation = Activation::gelu_erf;
  linear.y = inner;
  context.ops.linear(context, linear);
  linear.x = inner;
  linear.weight = merger.out.get();
  linear.bias = merger.out_bias.data();
  linear.activation = Activation::none;
  linear.y = y;
  context.ops.linear(context, linear);
}

VisionTower::Features VisionTower::forward(Context& context, const Pictures& pictures, const Transformer::Observer& observer) const {
  check(pictures);
  const VisionConfig& v = config_;
  const int64_t N = pictures.patch_count(), C = v.tower.hidden;
  TransformerInput input;
  std::vector<int32_t> offsets{0}, taps;
  std::vector<float> weights;
  input.positions.resize(size_t(2 * N));
  int64_t patch = 0;
  for (const auto& [rows, columns] : pictures.grids) {
    // Place i of n patches lies at i * (grid - 1) / (n - 1) of the learned grid; bilinear between the four around it.
    auto axis = [&](int64_t i, int64_t n, int64_t& low, int64_t& high, float& share) {
      const float at = n > 1 ? float(i) * (float(v.grid - 1) / float(n - 1)) : 0;
      low = std::min<int64_t>(int64_t(at), v.grid - 1);
      high = std::min(low + 1, v.grid - 1);
      share = at - float(low);
    };
    for (int64_t block_row = 0; block_row < rows; block_row += v.merge)
      for (int64_t block_column = 0; block_column < columns; block_column += v.merge)
        for (int64_t r = block_row; r < block_row + v.merge; ++r)
          for (int64_t c = block_column; c < block_column + v.merge; ++c, ++patch) {
            input.positions[size_t(patch)] = int32_t(r);
            input.positions[size_t(N + patch)] = int32_t(c);
            int64_t top, bottom, left, right;
            float down, across;
            axis(r, rows, top, bottom, down);
            axis(c, columns, left, right, across);
            for (int64_t row : {top, bottom})
              for (int64_t column : {left, right}) taps.push_back(int32_t(row * v.grid + column));
            weights.insert(weights.end(), {(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across});
          }
    offsets.push_back(int32_t(patch));
  }

  Features features;
  const int64_t unit = v.merge * v.merge;
  features.tokens = context.scratch.matrix(N / unit, v.outputs);
  for (size_t i = 0; i < deepstack_.size(); ++i) features.deepstack.push_back(context.scratch.matrix(N / unit, v.outputs));
  Arena::Scope scope(context.scratch);
  Matrix x = context.scratch.matrix(N, C), place = context.scratch.matrix(N, C);
  GatherArgs positions;
  positions.x = {const_cast<float*>(positions_.data()), v.grid * v.grid, C, C};
  positions.y = place;
  positions.rows = taps.data();
  positions.taps = 4;
  positions.weights = weights.data();
  context.ops.gather(context, positions);
  LinearArgs embed;
  embed.x = {const_cast<float*>(pictures.patches), N, v.patch_values(), v.patch_values()};
  embed.weight = patch_.get();
  embed.bias = patch_bias_.data();
  embed.residual = place;
  embed.y = x;
  context.ops.linear(context, embed);

  input.batch.offsets = offsets.data();
  input.batch.sequences = int(pictures.grids.size());
  input.embeddings = x;
  const Matrix last = blocks_->forward(context, input, std::nullopt, [&](int64_t layer, const Matrix& states) {
    for (size_t i = 0; i < v.deepstack.size(); ++i)
      if (v.deepstack[i] + 1 == layer) merge(context, deepstack_[i], states, features.deepstack[i]);
    if (observer) observer(layer, states);
  });
  merge(context, merger_, last, features.tokens);
  return features;
}

}  // namespace conan
