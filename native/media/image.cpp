#include "media/image.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "media/clones.h"

namespace conan::media {

namespace {

constexpr int kPrecision = 22;  // bits behind the point of a weight

/// Which inputs an output is made of, and in what proportions.
struct Taps {
  int64_t first = 0, count = 0;
  std::vector<int32_t> weights;
};

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

std::vector<Taps> taps_of(int64_t from, int64_t to) {
  const double scale = double(from) / double(to), widening = std::max(scale, 1.0), support = 2 * widening;
  std::vector<Taps> all(static_cast<size_t>(to));
  for (int64_t i = 0; i < to; ++i) {
    Taps& taps = all[size_t(i)];
    const double centre = (double(i) + 0.5) * scale;
    taps.first = std::max<int64_t>(0, int64_t(centre - support + 0.5));
    taps.count = std::min(from, int64_t(centre + support + 0.5)) - taps.first;
    std::vector<double> weights;
    double sum = 0;
    for (int64_t k = 0; k < taps.count; ++k) {
      weights.push_back(bicubic((double(k + taps.first) - centre + 0.5) / widening));
      sum += weights.back();
    }
    for (double w : weights) {
      const double scaled = (sum != 0 ? w / sum : w) * double(1 << kPrecision);
      taps.weights.push_back(int32_t(scaled < 0 ? scaled - 0.5 : scaled + 0.5));
    }
  }
  return all;
}

uint8_t rounded(int32_t sum) { return uint8_t(std::clamp(sum >> kPrecision, 0, 255)); }

using Pixels = std::vector<uint8_t>;

/// sum[i] += from[i] * weight
CONAN_CLONES void add_weighted(int32_t* __restrict sum, const uint8_t* __restrict from, int32_t weight, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sum[i] += from[i] * weight;
}

CONAN_CLONES void round_all(uint8_t* __restrict out, const int32_t* __restrict sum, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = rounded(sum[i]);
}

/// Columns become rows: [height, width, 3] -> [width, height, 3]
Pixels turned(const Pixels& pixels, int64_t width, int64_t height) {
  Pixels out(pixels.size());
  constexpr int64_t tile = 16;  // so that what is read and what is written both stay in cache
  for (int64_t top = 0; top < height; top += tile)
    for (int64_t left = 0; left < width; left += tile)
      for (int64_t y = top; y < std::min(height, top + tile); ++y)
        for (int64_t x = left; x < std::min(width, left + tile); ++x)
          for (int c = 0; c < 3; ++c) out[size_t((x * height + y) * 3 + c)] = pixels[size_t((y * width + x) * 3 + c)];
  return out;
}

/// [height, width, 3] -> [to, width, 3]
Pixels resize_columns(const Pixels& pixels, int64_t width, int64_t height, int64_t to) {
  if (to == height) return pixels;
  const int64_t row = width * 3;
  Pixels out(size_t(row * to));
  std::vector<int32_t> sum(static_cast<size_t>(row));
  const std::vector<Taps> rows = taps_of(height, to);
  for (int64_t y = 0; y < to; ++y) {
    const Taps& taps = rows[size_t(y)];
    std::fill(sum.begin(), sum.end(), 1 << (kPrecision - 1));
    for (int64_t k = 0; k < taps.count; ++k) {
      const uint8_t* from = pixels.data() + (taps.first + k) * row;
      add_weighted(sum.data(), from, taps.weights[size_t(k)], row);
    }
    round_all(out.data() + y * row, sum.data(), row);
  }
  return out;
}

/// [height, width, 3] -> [height, to, 3]: turned over, since whole rows can be added at once.
Pixels resize_rows(const Pixels& pixels, int64_t width, int64_t height, int64_t to) {
  if (to == width) return pixels;
  return turned(resize_columns(turned(pixels, width, height), height, width, to), height, to);
}

}  // namespace

std::vector<uint8_t> resize_bicubic(const uint8_t* pixels, int64_t width, int64_t height, int64_t to_width, int64_t to_height) {
  if (width < 1 || height < 1 || to_width < 1 || to_height < 1)
    fail("INVALID_INPUT", "image: expected sizes of at least one pixel, got ", width, " x ", height, " to ", to_width, " x ", to_height);
  const Pixels all(pixels, pixels + width * height * 3);
  // Between the two passes values are rounded to 8 bits, so their order shows. Pillow 13 (found by trying it out) takes
  // columns first where the height shrinks by more than twice what the width does.
  if (height - to_height > 2 * std::max<int64_t>(0, width - to_width))
    return resize_rows(resize_columns(all, width, height, to_height), width, to_height, to_width);
  return resize_columns(resize_rows(all, width, height, to_width), to_width, height, to_height);
}

void write_patches(const std::vector<const uint8_t*>& frames, int64_t width, int64_t height, const PatchLayout& layout, float* out) {
  const int64_t p = layout.patch, m = layout.merge, block = p * m;
  if (width % block || height % block || width < 1 || height < 1 || int64_t(frames.size()) != layout.temporal_patch)
    fail("INTERNAL", "patches: expected ", layout.temporal_patch, " frames of multiples of ", block, ", got ", frames.size(), " of ", width, " x ",
         height);
  float value[3][256];
  for (int c = 0; c < 3; ++c)
    for (int v = 0; v < 256; ++v) value[c][v] = (float(v) / 255.f - layout.mean[c]) / layout.deviation[c];
  for (int64_t by = 0; by < height; by += block)
    for (int64_t bx = 0; bx < width; bx += block)
      for (int64_t py = by; py < by + block; py += p)
        for (int64_t px = bx; px < bx + block; px += p)
          for (int c = 0; c < 3; ++c)
            for (const uint8_t* frame : frames)
              for (int64_t y = py; y < py + p; ++y)
                for (int64_t x = px; x < px + p; ++x) *out++ = value[c][frame[(y * width + x) * 3 + c]];
}

}  // namespace conan::media
