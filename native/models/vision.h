// The vision tower: patches of images and of pairs of video frames in, tokens for the language model out.
#pragma once
#include <array>
#include <functional>
#include <memory>
#include <vector>

#include "models/transformer.h"

namespace conan {

/// Pictures of a batch, one after the other: an image, or two consecutive frames of a video.
struct Pictures {
  /// Patches [rows, patch_values] of some of them, one behind the other, blocks of merge x merge together: numbers, or colours in bytes, of which
  /// a channel's (byte / 255 - mean) / deviation are the numbers.
  struct Piece {
    const float* values = nullptr;
    const uint8_t* bytes = nullptr;
    int64_t rows = 0;
    std::array<float, 3> mean = {}, deviation = {1, 1, 1};
  };
  std::vector<Piece> patches;
  std::vector<std::pair<int32_t, int32_t>> grids;  // rows and columns of patches

  int64_t patch_count() const {
    int64_t n = 0;
    for (const auto& [rows, columns] : grids) n += int64_t(rows) * columns;
    return n;
  }
};

class VisionTower {
 public:
  VisionTower(Context& context, VisionConfig config, WeightLoader& loader, WeightFormat format);

  const VisionConfig& config() const { return config_; }
  size_t weight_bytes() const;
  /// Fails where grids and the number of patches do not fit this tower: INVALID_INPUT.
  void check(const Pictures& pictures) const;

  struct Features {
    Matrix tokens;                  // [patches / merge^2, outputs]
    std::vector<Matrix> deepstack;  // the same, for the language model's first layers
  };
  /// The memory is the context's scratch.
  Features forward(Context& context, const Pictures& pictures, const Transformer::Observer& observer = {}) const;

  bool trains(const Gradients& gradients) const;
  /// As observer of forward(): keeps what backward() needs.
  Transformer::Observer record(Context& context, Tape& tape, const Gradients& gradients) const;
  /// Gradients of all that trains, for those of the features.
  void backward(Context& context, const Pictures& pictures, const Tape& tape, const Features& d, Gradients& gradients) const;

 private:
  struct Merger {
    Values norm_weight, norm_bias, in_bias, out_bias;
    std::unique_ptr<Weight> in, out;
    bool norm_after = false;  // over the patches put together, not over each
  };
  Merger load_merger(Context& context, WeightLoader& loader, WeightFormat format, const std::string& name, bool norm_after) const;
  void merge(Context& context, const Merger& merger, const Matrix& x, const Matrix& y) const;
  /// dx += gradient of merge at x.
  void merge_backward(Context& context, const Merger& merger, const Matrix& x, const Matrix& dy, const Matrix& dx, Gradients& gradients) const;
  static bool trains(const Gradients& gradients, const Merger& merger);
  bool stem_trains(const Gradients& gradients) const;
  int64_t lowest_trained(const Gradients& gradients) const;
  /// What goes into the blocks but for the embeddings, and the four of the learned positions around each patch with their shares.
  struct Plan {
    TransformerInput input;
    std::vector<int32_t> offsets{0}, taps;
    std::vector<float> shares;
  };
  void plan_of(const Pictures& pictures, Plan& plan) const;
  void for_patches(Context& context, const Pictures& pictures, const std::function<void(int64_t first, const Matrix& patches)>& use) const;

  VisionConfig config_;
  std::unique_ptr<Weight> patch_;
  Values patch_bias_, positions_;  // [outputs of a patch], [grid^2, hidden]
  std::unique_ptr<Transformer> blocks_;
  Merger merger_;
  std::vector<Merger> deepstack_;
};

}  // namespace conan
