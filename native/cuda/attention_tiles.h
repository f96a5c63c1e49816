// What the kernels of attention by whole warpgroups share, forward and back: heads of matrices as tiles of 128-byte rows, by 64 channels each.
#pragma once
#include "cuda/attention.h"
#include "cuda/hopper.h"

namespace conan::cuda {

/// A matrix of heads, by boxes of some rows of one of them.
inline TileMap heads_map(const NarrowView& m, int heads, int head_dim, int rows) {
  return tile_map(m.data, 2, head_dim, heads, m.rows, head_dim, m.stride, rows);
}

constexpr int few_keys = 64;  // sequences of no more have kernels of their own

#if CONAN_WARPGROUPS

template <int D>
__device__ __forceinline__ void load_tile(unsigned char* to, const TileMap& map, int rows, int head, int first, Barrier& barrier) {
#pragma unroll
  for (int d = 0; d < D; d += 64) load_box(to + d * rows * 2, map, d, head, first, barrier);
}

/// c [64, n] = rows of a warpgroup, which begin `left_first` bytes into a tile of `left_rows`, times the n rows of another tile.
template <int n, int D>
__device__ __forceinline__ void multiply_tiles(float (&c)[n / 2], const unsigned char* left, int left_rows, int left_first,
                                               const unsigned char* right) {
#pragma unroll
  for (int d = 0; d < D / 16; ++d)
    multiply<n>(c, further(tile_of(left + d / 4 * left_rows * 128 + left_first), d % 4 * 32), further(tile_of(right + d / 4 * n * 128), d % 4 * 32),
                d > 0);
}

/// Scores of one of a lane's two rows, at position i, by all keys of a short sequence: shares of the largest; of keys that it does not see, and of a
/// row that is not there, nothing.
__device__ __forceinline__ void weigh(float (&scores)[few_keys / 2], int half, const Shape& s, int64_t i, bool there, int keys, float factor) {
  const int lane = int(threadIdx.x) % 32;
  const int from = int(s.first_key(i)) - lane % 4 * 2, to = there ? int(s.end_key(i, keys)) - lane % 4 * 2 : -1;
  float most = -INFINITY;
#pragma unroll
  for (int n = 0; n < few_keys / 8; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float& score = scores[4 * n + 2 * half + e];
      if (8 * n + e < from || 8 * n + e >= to) score = -INFINITY;
      most = fmaxf(most, score);
    }
  most = row_max(most);
  const float base = most == -INFINITY ? 0 : most * factor;
#pragma unroll
  for (int n = 0; n < few_keys / 8; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) scores[4 * n + 2 * half + e] = power_of_two(scores[4 * n + 2 * half + e] * factor - base);
}

/// Scores as the left side of the next product.
template <int n>
__device__ __forceinline__ void hold(uint32_t (&held)[n / 16][4], const float (&scores)[n / 2]) {
#pragma unroll
  for (int k = 0; k < n / 16; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) held[k][i] = pack_bf16(scores[8 * k + 2 * i], scores[8 * k + 2 * i + 1]);
}

/// sums [64, D] = shares [64, n] times the n rows of a tile, or += it.
template <int n, int D>
__device__ __forceinline__ void multiply_shares(float (&sums)[D / 2], const uint32_t (&shares)[n / 16][4], const unsigned char* tile, bool add) {
#pragma unroll
  for (int k = 0; k < n / 16; ++k) multiply_held<D>(sums, shares[k], further(tile_of(tile, n * 128), k * 2048), add || k > 0);
}

/// Sums of a lane's two rows, of which `own` is the first, times a factor each, to where they belong.
template <int D>
__device__ __forceinline__ void store(const float (&sums)[D / 2], const float (&factor)[2], int64_t first, int own, int rows, int column,
                                      int head_dim, const View& y, const NarrowView& narrow_y = {}) {
  const int lane = int(threadIdx.x) % 32;
  const bool in_pairs = in_steps(y, 2), in_fours = in_steps(narrow_y, 4);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const bool there = own + 8 * half < rows;
    const int64_t row = first + own + 8 * half;
    if (narrow_y.data) {
      // Neighbours exchange two words, so that each has four numbers of every other eight, and a row gets 32 bytes at a time.
#pragma unroll
      for (int c = 0; c < D / 8; c += 2) {
        const int at = 4 * c + 2 * half;
        const uint32_t low = pack_bf16(sums[at] * factor[half], sums[at + 1] * factor[half]),
                       high = pack_bf16(sums[at + 4] * factor[half], sums[at + 5] * factor[half]);
        const uint32_t other = __shfl_xor_sync(full_warp, lane % 2 ? low : high, 1);
        const int d = 8 * (c + lane % 2) + lane % 4 / 2 * 4;
        if (!there || d >= head_dim) continue;
        const uint2 four = lane % 2 ? uint2{other, high} : uint2{low, other};
        uint16_t* const to = narrow_y.row(row) + column + d;
        if (in_fours) *reinterpret_cast<uint2*>(to) = four;
        else to[0] = uint16_t(four.x), to[1] = uint16_t(four.x >> 16), to[2] = uint16_t(four.y), to[3] = uint16_t(four.y >> 16);
      }
      continue;
    }
#pragma unroll
    for (int c = 0; c < D / 8; ++c) {
      const int d = 8 * c + lane % 4 * 2;
      const float2 two = {sums[4 * c + 2 * half] * factor[half], sums[4 * c + 2 * half + 1] * factor[half]};
      if (!there || d >= head_dim) continue;
      if (in_pairs) *reinterpret_cast<float2*>(y.row(row) + column + d) = two;
      else y.row(row)[column + d] = two.x, y.row(row)[column + d + 1] = two.y;
    }
  }
}

#endif

}  // namespace conan::cuda
