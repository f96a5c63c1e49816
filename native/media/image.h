// Decoded pictures to what a vision tower takes: resampled as Pillow does, cut into patches.
#pragma once
#include <cstdint>
#include <vector>

namespace conan::media {

/// Bicubic resampling (a = -0.5) with antialiasing of 8-bit RGB, in two passes that each round to 8 bits: Pillow 13's
/// Image.resize, to the bit. pixels [height, width, 3] -> [to_height, to_width, 3].
std::vector<uint8_t> resize_bicubic(const uint8_t* pixels, int64_t width, int64_t height, int64_t to_width, int64_t to_height);

struct PatchLayout {
  int64_t patch = 16, temporal_patch = 2, merge = 2;
};

/// frames: temporal_patch pictures [height, width, 3] (one of them repeated is an image). out [patches, 3 * temporal_patch *
/// patch * patch]: merge x merge patches of a block together, blocks row by row; in a patch channel, frame, row, column
/// (transformers, Qwen2-VL's image processor).
void write_patches(const std::vector<const uint8_t*>& frames, int64_t width, int64_t height, const PatchLayout& layout, uint8_t* out);

}  // namespace conan::media
