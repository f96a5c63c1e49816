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

/// Where nothing changes, an output is its input.
std::vector<Taps> taps_of(int64_t from, int64_t to) {
  const double scale = double(from) / double(to), widening = std::max(scale, 1.0), support = 2 * widening;
  std::vector<Taps> all(static_cast<size_t>(to));
  for (int64_t i = 0; i < to; ++i) {
    Taps& taps = all[size_t(i)];
    if (from == to) {
      taps = {i, 1, {1 << kPrecision}};
      continue;
    }
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

/// `count` neighbouring values of an output: from[k * stride + i] by their weights, in registers.
template <int count, class In>
CONAN_CLONES void weigh(const In* __restrict from, int64_t stride, const int32_t* __restrict weights, int64_t taps, uint8_t* __restrict out) {
  int32_t sum[count];
  for (int i = 0; i < count; ++i) sum[i] = 1 << (kPrecision - 1);
  for (int64_t k = 0; k < taps; ++k)
    for (int i = 0; i < count; ++i) sum[i] += from[k * stride + i] * weights[k];
  for (int i = 0; i < count; ++i) out[i] = rounded(sum[i]);
}

/// Rows to the row that they make: from[(taps.first + k) * stride + i], i < n.
template <class In>
void weigh_rows(const In* from, int64_t stride, const Taps& taps, int64_t n, uint8_t* out) {
  from += taps.first * stride;
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) weigh<64>(from + i, stride, taps.weights.data(), taps.count, out + i);
  for (; i < n; ++i) weigh<1>(from + i, stride, taps.weights.data(), taps.count, out + i);
}

constexpr int64_t kStrip = 16;  // rows that are turned over together

/// 16 x 16 bytes, turned over: four times, the first half of the rows and the second are shuffled into each other byte by byte.
template <class Out>
void turn_block(const uint8_t* from, int64_t stride, Out* to, int64_t to_stride) {
  constexpr int64_t half = kStrip * kStrip / 2;
  uint8_t a[2 * half], b[2 * half];
  for (int64_t i = 0; i < kStrip; ++i) std::memcpy(a + i * kStrip, from + i * stride, kStrip);
  const auto shuffle = [](const uint8_t* __restrict in, uint8_t* __restrict out) {
    for (int64_t i = 0; i < half; ++i) out[2 * i] = in[i], out[2 * i + 1] = in[half + i];
  };
  shuffle(a, b), shuffle(b, a), shuffle(a, b), shuffle(b, a);
  for (int64_t i = 0; i < kStrip; ++i) std::copy_n(a + i * kStrip, kStrip, to + i * to_stride);
}

/// Bytes [rows, cols] -> [cols, rows]; where the last block does not fill up, it overlaps the one before.
template <class Out>
void turn(const uint8_t* from, int64_t stride, int64_t rows, int64_t cols, Out* to, int64_t to_stride) {
  if (rows < kStrip || cols < kStrip) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c) to[c * to_stride + r] = from[r * stride + c];
    return;
  }
  for (int64_t c = 0; c < cols; c += kStrip)
    for (int64_t r = 0; r < rows; r += kStrip) {
      const int64_t y = std::min(r, rows - kStrip), x = std::min(c, cols - kStrip);
      turn_block(from + y * stride + x, stride, to + x * to_stride + y, to_stride);
    }
}

/// A byte that is weighed several times is widened once.
using Wide = int16_t;

/// `count` columns of a picture [height, width, 3], resampled along its rows -> [height, 3, count]. By strips of rows, turned over so that the
/// same byte of all of them is weighed at once.
template <class Out>
void resample_columns(const uint8_t* pixels, int64_t width, int64_t height, const Taps* columns, int64_t count, std::vector<Out>& out) {
  const int64_t first = columns[0].first, span = columns[count - 1].first + columns[count - 1].count - first;
  constexpr int64_t pixel = 3 * kStrip;
  std::vector<Wide> turned(size_t(span * pixel));
  std::vector<uint8_t> weighed(size_t(count * pixel));
  out.resize(size_t(height * 3 * count));
  for (int64_t strip = 0; strip < height; strip += kStrip) {
    const int64_t y = std::max<int64_t>(0, std::min(strip, height - kStrip)), rows = std::min(kStrip, height);
    turn(pixels + (y * width + first) * 3, width * 3, rows, span * 3, turned.data(), kStrip);
    for (int64_t x = 0; x < count; ++x)
      weigh<pixel>(turned.data() + (columns[x].first - first) * pixel, pixel, columns[x].weights.data(), columns[x].count,
                   &weighed[size_t(x * pixel)]);
    for (int64_t c = 0; c < 3; ++c) turn(&weighed[size_t(c * kStrip)], pixel, count, rows, &out[size_t((y * 3 + c) * count)], 3 * count);
  }
}

}  // namespace

void image_patches(const std::vector<const uint8_t*>& frames, int64_t width, int64_t height, int64_t to_width, int64_t to_height,
                   const PatchLayout& layout, uint8_t* out) {
  const int64_t p = layout.patch, m = layout.merge, block = p * m, slots = layout.temporal_patch, given = int64_t(frames.size());
  if (width < 1 || height < 1 || to_width < 1 || to_height < 1 || to_width % block || to_height % block)
    fail("INVALID_INPUT", "image: expected sizes of at least one pixel to multiples of ", block, ", got ", width, " x ", height, " to ", to_width,
         " x ", to_height);
  if (given < 1 || given > slots) fail("INTERNAL", "patches: expected 1 to ", slots, " frames, got ", given);
  const std::vector<Taps> columns = taps_of(width, to_width), rows = taps_of(height, to_height);
  std::vector<int64_t> before;  // patches before one, in a row of blocks
  for (int64_t i = 0; i < to_width / p; ++i) before.push_back(i / m * m * m + i % m);
  for (int64_t f = 0; f < given; ++f) {
    const int64_t end = f + 1 < given ? f + 1 : slots;
    /// `count` columns from x of row y: `row` is [3, count].
    const auto place = [&](const uint8_t* row, int64_t y, int64_t x, int64_t count) {
      const int64_t above = y / block * (to_width / block) * m * m + y % block / p * m;
      for (int64_t i = 0; i < count; i += p) {
        const int64_t patch = above + before[size_t((x + i) / p)];
        for (int64_t c = 0; c < 3; ++c)
          for (int64_t slot = f; slot < end; ++slot) {
            uint8_t* const to = out + (((patch * 3 + c) * slots + slot) * p + y % p) * p;
            if (p == 16) std::memcpy(to, row + c * count + i, 16);  // most models': one instruction instead of a call
            else std::memcpy(to, row + c * count + i, size_t(p));
          }
      }
    };
    // Between the two passes values are rounded to 8 bits, so their order shows. Pillow 13 (found by trying it out) takes
    // columns first where the height shrinks by more than twice what the width does. As much goes through both as stays in cache.
    if (height - to_height > 2 * std::max<int64_t>(0, width - to_width)) {
      std::vector<uint8_t> lower(size_t(block * width * 3)), done;
      for (int64_t y = 0; y < to_height; y += block) {
        for (int64_t i = 0; i < block; ++i) weigh_rows(frames[size_t(f)], width * 3, rows[size_t(y + i)], width * 3, &lower[size_t(i * width * 3)]);
        resample_columns(lower.data(), width, block, columns.data(), to_width, done);
        for (int64_t i = 0; i < block; ++i) place(&done[size_t(i * 3 * to_width)], y + i, 0, to_width);
      }
    } else {
      const int64_t band = (63 / p + 1) * p;
      std::vector<Wide> narrower;
      std::vector<uint8_t> row(size_t(3 * band));
      for (int64_t x = 0; x < to_width; x += band) {
        const int64_t count = std::min(band, to_width - x);
        resample_columns(frames[size_t(f)], width, height, &columns[size_t(x)], count, narrower);
        for (int64_t y = 0; y < to_height; ++y) {
          weigh_rows(narrower.data(), 3 * count, rows[size_t(y)], 3 * count, row.data());
          place(row.data(), y, x, count);
        }
      }
    }
  }
}

}  // namespace conan::media
