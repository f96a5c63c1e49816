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
    copy(context, x, together);
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

/// Hands over all patches as numbers, some thousand rows at a time, and which of all the first is.
void VisionTower::for_patches(Context& context, const Pictures& pictures,
                              const std::function<void(int64_t first, const Matrix& patches)>& use) const {
  constexpr int64_t most = 8192;
  const int64_t width = config_.patch_values(), channels = config_.channels;
  int64_t first = 0;
  for (const Pictures::Piece& piece : pictures.patches) {
    if (piece.values) {
      use(first, {const_cast<float*>(piece.values), piece.rows, width, width});
      first += piece.rows;
      continue;
    }
    if (channels != int64_t(piece.mean.size())) fail("INVALID_INPUT", "colours: expected a tower of 3 channels, got ", channels);
    std::vector<float> table;
    for (size_t c = 0; c < piece.mean.size(); ++c)
      for (int byte = 0; byte < 256; ++byte) table.push_back((float(byte) / 255.f - piece.mean[c]) / piece.deviation[c]);
    for (int64_t row = 0; row < piece.rows; row += most) {
      Arena::Scope scope(context.scratch);
      const Matrix patches = context.scratch.matrix(std::min(most, piece.rows - row), width);
      context.ops.unpack(context, {piece.bytes + row * width, table.data(), channels, patches});
      use(first, patches);
      first += patches.rows;
    }
  }
}

void VisionTower::plan_of(const Pictures& pictures, Plan& plan) const {
  const VisionConfig& v = config_;
  const int64_t N = pictures.patch_count();
  plan.input.positions.resize(size_t(2 * N));
  plan.taps.reserve(size_t(4 * N)), plan.shares.reserve(size_t(4 * N));
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
            plan.input.positions[size_t(patch)] = int32_t(r);
            plan.input.positions[size_t(N + patch)] = int32_t(c);
            int64_t top, bottom, left, right;
            float down, across;
            axis(r, rows, top, bottom, down);
            axis(c, columns, left, right, across);
            for (int64_t row : {top, bottom})
              for (int64_t column : {left, right}) plan.taps.push_back(int32_t(row * v.grid + column));
            plan.shares.insert(plan.shares.end(), {(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across});
          }
    plan.offsets.push_back(int32_t(patch));
  }
  plan.input.batch.offsets = plan.offsets.data();
  plan.input.batch.sequences = int(pictures.grids.size());
}

VisionTower::Features VisionTower::forward(Context& context, const Pictures& pictures, const Transformer::Observer& observer) const {
  check(pictures);
  const VisionConfig& v = config_;
  const int64_t N = pictures.patch_count(), C = v.tower.hidden;
  Plan plan;
  plan_of(pictures, plan);

  Features features;
  const int64_t unit = v.merge * v.merge;
  features.tokens = context.scratch.matrix(N / unit, v.outputs);
  for (size_t i = 0; i < deepstack_.size(); ++i) features.deepstack.push_back(context.scratch.matrix(N / unit, v.outputs));
  Arena::Scope scope(context.scratch);
  Matrix x = context.scratch.matrix(N, C), place = context.scratch.matrix(N, C);
  GatherArgs positions;
  positions.x = {const_cast<float*>(positions_.data()), v.grid * v.grid, C, C};
  positions.y = place;
  positions.rows = plan.taps.data();
  positions.taps = 4;
  positions.weights = plan.shares.data();
  context.ops.gather(context, positions);
  LinearArgs embed;
  embed.weight = patch_.get();
  embed.bias = patch_bias_.data();
  for_patches(context, pictures, [&](int64_t first, const Matrix& patches) {
    embed.x = patches;
    embed.residual = place.slice(first, patches.rows);
    embed.y = x.slice(first, patches.rows);
    context.ops.linear(context, embed);
  });

  plan.input.embeddings = x;
  const Matrix last = blocks_->forward(context, plan.input, std::nullopt, [&](int64_t layer, const Matrix& states) {
    for (size_t i = 0; i < v.deepstack.size(); ++i)
      if (v.deepstack[i] + 1 == layer) merge(context, deepstack_[i], states, features.deepstack[i]);
    if (observer) observer(layer, states);
  });
  merge(context, merger_, last, features.tokens);
  return features;
}

bool VisionTower::trains(const Gradients& gradients, const Merger& merger) {
  return gradients.wants(*merger.in) || gradients.wants(*merger.out) || gradients.wants(merger.norm_weight) || gradients.wants(merger.norm_bias) ||
         gradients.wants(merger.in_bias) || gradients.wants(merger.out_bias);
}

bool VisionTower::stem_trains(const Gradients& gradients) const {
  return gradients.wants(*patch_) || gradients.wants(patch_bias_) || gradients.wants(positions_);
}

int64_t VisionTower::lowest_trained(const Gradients& gradients) const {
  if (stem_trains(gradients)) return 0;
  int64_t lowest = blocks_->lowest_trained(gradients);
  for (size_t i = 0; i < deepstack_.size(); ++i)
    if (trains(gradients, deepstack_[i])) lowest = std::min(lowest, config_.deepstack[i] + 1);
  return lowest;
}

bool VisionTower::trains(const Gradients& gradients) const {
  return trains(gradients, merger_) || lowest_trained(gradients) < blocks_->config().layers ||
         std::any_of(deepstack_.begin(), deepstack_.end(), [&](const Merger& merger) { return trains(gradients, merger); });
}

Transformer::Observer VisionTower::record(Context& context, Tape& tape, const Gradients& gradients) const {
  return blocks_->record(context, tape, lowest_trained(gradients), gradients);
}

void VisionTower::merge_backward(Context& context, const Merger& merger, const Matrix& x, const Matrix& dy, const Matrix& dx,
                                 Gradients& gradients) const {
  const int64_t unit = config_.merge * config_.merge, wide = x.cols * unit, rows = x.rows / unit;
  Arena::Scope scope(context.scratch);
  const Matrix together = context.scratch.contiguous(x.rows, x.cols), normed = context.scratch.contiguous(x.rows, x.cols),
               back = context.scratch.contiguous(x.rows, x.cols);
  const auto joined = [&](const Matrix& m) { return Matrix{m.data, rows, wide, wide}; };
  copy(context, x, together);
  const auto as_normed = [&](const Matrix& m) { return merger.norm_after ? joined(m) : m; };
  NormArgs norm;
  norm.eps = config_.tower.norm_eps;
  norm.weight = merger.norm_weight.data();
  norm.bias = merger.norm_bias.data();
  norm.x = as_normed(together);
  norm.y = as_normed(normed);
  context.ops.norm(context, norm);
  const Matrix u = context.scratch.matrix(rows, wide), h = context.scratch.matrix(rows, wide);
  LinearArgs linear;
  linear.x = joined(normed);
  linear.weight = merger.in.get();
  linear.bias = merger.in_bias.data();
  linear.y = u;
  context.ops.linear(context, linear);
  context.ops.activate(context, {Activation::gelu_erf, false, u, h});
  gradients.linear(context, *merger.out, merger.out_bias, dy, h);
  linear_input(context, gradients, *merger.out, dy, h);
  context.ops.activate_backward(context, {Activation::gelu_erf, false, u, h, u});
  gradients.linear(context, *merger.in, merger.in_bias, u, joined(normed));
  linear_input(context, gradients, *merger.in, u, joined(back));
  NormBackwardArgs norm_backward;
  norm_backward.eps = config_.tower.norm_eps;
  norm_backward.x = as_normed(together);
  norm_backward.weight = merger.norm_weight.data();
  norm_backward.dy = norm_backward.dx = as_normed(back);
  norm_backward.dweight = gradients.values(merger.norm_weight);
  norm_backward.dbias = gradients.values(merger.norm_bias);
  context.ops.norm_backward(context, norm_backward);
  context.ops.scatter(context, {back, dx, nullptr, true});
}

void VisionTower::backward(Context& context, const Pictures& pictures, const Tape& tape, const Features& d, Gradients& gradients) const {
  Arena::Scope scope(context.scratch);
  const int64_t N = pictures.patch_count(), C = config_.tower.hidden;
  const Matrix dx = context.scratch.matrix(N, C);
  clear(context, dx);
  const auto states = [&](int64_t layer) { return tape.states[size_t(layer - tape.lowest)]; };
  const int64_t layers = blocks_->config().layers;
  merge_backward(context, merger_, states(layers), d.tokens, dx, gradients);
  Plan plan;
  plan_of(pictures, plan);
  const bool stem = stem_trains(gradients);
  const auto deepstack_at = [&](int64_t layer, const Matrix& gradient) {
    for (size_t i = 0; i < config_.deepstack.size() && i < d.deepstack.size(); ++i)
      if (config_.deepstack[i] + 1 == layer) merge_backward(context, deepstack_[i], states(layer), d.deepstack[i], gradient, gradients);
  };
  const InputGradients given = blocks_->backward(context, plan.input, tape, dx, gradients, stem, deepstack_at);
  if (tape.lowest > 0 && !stem) deepstack_at(tape.lowest, dx);  // below the lowest layer that is gone through
  if (!stem) return;
  for_patches(context, pictures, [&](int64_t first, const Matrix& patches) {
    gradients.linear(context, *patch_, patch_bias_, given.embeddings.slice(first, patches.rows), patches);
  });
  if (float* positions = gradients.values(positions_)) {
    const Matrix table{positions, config_.grid * config_.grid, C, C}, share = context.scratch.matrix(N, C);
    std::vector<int32_t> ids(static_cast<size_t>(N)), rows(ids);
    std::vector<float> shares(ids.size());
    std::iota(rows.begin(), rows.end(), 0);
    for (int tap = 0; tap < 4; ++tap) {
      for (size_t i = 0; i < ids.size(); ++i) ids[i] = plan.taps[4 * i + size_t(tap)], shares[i] = plan.shares[4 * i + size_t(tap)];
      context.ops.gather(context, {given.embeddings, share, rows.data(), 1, shares.data()});
      context.ops.embed_backward(context, {ids.data(), 1, share, table});
    }
  }
}

}  // namespace conan
