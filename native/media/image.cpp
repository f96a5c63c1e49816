#include "media/image.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "base/error.h"
#include "base/clones.h"

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

/// `count` neighbouring bytes of an output: from[k * stride + i] by their weights, in registers.
template <int count>
CONAN_CLONES void weigh(const uint8_t* __restrict from, int64_t stride, const int32_t* __restrict weights, int64_t taps, uint8_t* __restrict out) {
  int32_t sum[count];
  for (int i = 0; i < count; ++i) sum[i] = 1 << (kPrecision - 1);
  for (int64_t k = 0; k < taps; ++k)
    for (int i = 0; i < count; ++i) sum[i] += from[k * stride + i] * weights[k];
  for (int i = 0; i < count; ++i) out[i] = rounded(sum[i]);
}

/// An 8 x 8 block of bytes, turned over: by halves, quarters and single ones (Warren, Hacker's Delight, 7-3).
void turn_block(const uint8_t* from, int64_t stride, uint8_t* to, int64_t to_stride) {
  uint64_t row[8];
  for (int i = 0; i < 8; ++i) std::memcpy(&row[i], from + i * stride, 8);
  const auto exchange = [&](int apart, uint64_t low) {
    for (int i = 0; i < 8; ++i) {
      if (i & apart) continue;
      const uint64_t other = ((row[i] >> (8 * apart)) ^ row[i + apart]) & low;
      row[i + apart] ^= other;
      row[i] ^= other << (8 * apart);
    }
  };
  exchange(4, 0x00000000ffffffff);
  exchange(2, 0x0000ffff0000ffff);
  exchange(1, 0x00ff00ff00ff00ff);
  for (int i = 0; i < 8; ++i) std::memcpy(to + i * to_stride, &row[i], 8);
}

/// Bytes [rows, cols] -> [cols, rows]
void turn(const uint8_t* from, int64_t stride, int64_t rows, int64_t cols, uint8_t* to, int64_t to_stride) {
  for (int64_t c = 0; c < cols; c += 8)
    for (int64_t r = 0; r < rows; r += 8) {
      if (r + 8 <= rows && c + 8 <= cols) turn_block(from + r * stride + c, stride, to + c * to_stride + r, to_stride);
      else
        for (int64_t i = c; i < std::min(cols, c + 8); ++i)
          for (int64_t j = r; j < std::min(rows, r + 8); ++j) to[i * to_stride + j] = from[j * stride + i];
    }
}

/// [height, width, 3] -> [to, width, 3]
Pixels resize_columns(const uint8_t* pixels, int64_t width, int64_t height, int64_t to) {
  const int64_t row = width * 3;
  Pixels out(size_t(row * to));
  const std::vector<Taps> rows = taps_of(height, to);
  for (int64_t y = 0; y < to; ++y) {
    const Taps& taps = rows[size_t(y)];
    const uint8_t* from = pixels + taps.first * row;
    int64_t i = 0;
    const auto by = [&](auto count) {
      for (; i + count <= row; i += count) weigh<count>(from + i, row, taps.weights.data(), taps.count, out.data() + y * row + i);
    };
    by(std::integral_constant<int, 64>());
    by(std::integral_constant<int, 1>());
  }
  return out;
}

/// [height, width, 3] -> [height, to, 3]: by strips of rows, turned over so that the same bytes of all its rows are weighed at once.
Pixels resize_rows(const uint8_t* pixels, int64_t width, int64_t height, int64_t to) {
  constexpr int64_t strip = 16, pixel = 3 * strip;
  Pixels out(size_t(height * to * 3)), turned(size_t(width * pixel)), weighed(size_t(to * pixel));
  const std::vector<Taps> columns = taps_of(width, to);
  for (int64_t y = 0; y < height; y += strip) {
    const int64_t rows = std::min(strip, height - y);
    turn(pixels + y * width * 3, width * 3, rows, width * 3, turned.data(), strip);
    for (int64_t x = 0; x < to; ++x) {
      const Taps& taps = columns[size_t(x)];
      weigh<pixel>(turned.data() + taps.first * pixel, pixel, taps.weights.data(), taps.count, weighed.data() + x * pixel);
    }
    turn(weighed.data(), strip, to * 3, rows, out.data() + y * to * 3, to * 3);
  }
  return out;
}

}  // namespace

std::vector<uint8_t> resize_bicubic(const uint8_t* pixels, int64_t width, int64_t height, int64_t to_width, int64_t to_height) {
  if (width < 1 || height < 1 || to_width < 1 || to_height < 1)
    fail("INVALID_INPUT", "image: expected sizes of at least one pixel, got ", width, " x ", height, " to ", to_width, " x ", to_height);
  // Between the two passes values are rounded to 8 bits, so their order shows. Pillow 13 (found by trying it out) takes
  // columns first where the height shrinks by more than twice what the width does.
  const bool columns_first = height - to_height > 2 * std::max<int64_t>(0, width - to_width);
  if (width == to_width && height == to_height) return Pixels(pixels, pixels + width * height * 3);
  if (width == to_width) return resize_columns(pixels, width, height, to_height);
  if (height == to_height) return resize_rows(pixels, width, height, to_width);
  if (columns_first) return resize_rows(resize_columns(pixels, width, height, to_height).data(), width, to_height, to_width);
  return resize_columns(resize_rows(pixels, width, height, to_width).data(), to_width, height, to_height);
}

void write_patches(const std::vector<const uint8_t*>& frames, int64_t width, int64_t height, const PatchLayout& layout, uint8_t* out) {
  const int64_t p = layout.patch, m = layout.merge, block = p * m;
  if (width % block || height % block || width < 1 || height < 1 || int64_t(frames.size()) != layout.temporal_patch)
    fail("INTERNAL", "patches: expected ", layout.temporal_patch, " frames of multiples of ", block, ", got ", frames.size(), " of ", width, " x ",
         height);
  const int64_t plane = p * p, frame_count = int64_t(frames.size());  // values of a patch's channel in one frame
  const auto patch = [&](int64_t px, int64_t py) {
    for (int64_t f = 0; f < frame_count; ++f) {
      if (f > 0 && frames[size_t(f)] == frames[size_t(f - 1)]) {
        for (int64_t c = 0; c < 3; ++c) std::copy_n(out + (c * frame_count + f - 1) * plane, plane, out + (c * frame_count + f) * plane);
        continue;
      }
      for (int64_t y = 0; y < p; ++y) {
        const uint8_t* const from = frames[size_t(f)] + ((py + y) * width + px) * 3;
        for (int64_t x = 0; x < p; ++x)
          for (int64_t c = 0; c < 3; ++c) out[(c * frame_count + f) * plane + y * p + x] = from[3 * x + c];
      }
    }
    out += 3 * frame_count * plane;
  };
  for (int64_t by = 0; by < height; by += block)
    for (int64_t bx = 0; bx < width; bx += block)
      for (int64_t py = by; py < by + block; py += p)
        for (int64_t px = bx; px < bx + block; px += p) patch(px, py);
}

}  // namespace conan::media
