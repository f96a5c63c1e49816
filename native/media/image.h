// Decoded pictures to what a vision tower takes: resampled as Pillow does, cut into patches.
#pragma once
#include <cstdint>
#include <vector>

namespace conan::media {

struct PatchLayout {
  int64_t patch = 16, temporal_patch = 2, merge = 2;
};

/// frames: one to temporal_patch pictures [height, width, 3] of 8 bits, of which the last is repeated (an image is a still video). Each is resampled
/// to [to_height, to_width, 3], multiples of patch * merge, by the bicubic filter (a = -0.5) with antialiasing, in two passes that each round to 8
/// bits: Pillow 13's Image.resize, to the bit. out [patches, 3 * temporal_patch * patch * patch]: merge x merge patches of a block together, blocks
/// row by row; in a patch channel, frame, row, column (transformers, Qwen2-VL's image processor).
void image_patches(const std::vector<const uint8_t*>& frames, int64_t width, int64_t height, int64_t to_width, int64_t to_height,
                   const PatchLayout& layout, uint8_t* out);

}  // namespace conan::media
