// Attention over packed sequences, never with a matrix of scores in memory: keys come by tiles, and what was summed is scaled again
// whenever a larger score comes (FlashAttention). On tensor cores where bf16 is wanted and heads have at most 128 channels, in float32
// otherwise. A tile that a query does not see adds exactly nothing, so neighbours do not change a result.
#include <algorithm>

#include "cuda/attention.h"

namespace conan::cuda {

namespace {

constexpr int most_channels = 256;

/// float32. A block has 32 queries of one head, four a warp; lanes are keys for scores, channels for sums.
constexpr int plain_queries = 32, plain_keys = 32;

__global__ void __launch_bounds__(256) attention_f32(View q, View k, View v, View y, Shape s) {
  __shared__ float queries[plain_queries * most_channels / 2];
  __shared__ float tile[plain_keys * (most_channels / 2 + 1)];
  const int head = int(blockIdx.y), D = s.head_dim, warp = int(threadIdx.y), lane = int(threadIdx.x);
  const int thread = warp * 32 + lane;
  const auto [q0, count, kv0, keys, start, column, kv_column] = own_queries(s, plain_queries, blockIdx.z);
  if (count <= 0) return;
  // Channels by halves of 128, so that tiles fit whatever D is.
  constexpr int half = most_channels / 2;
  float most[4], total[4] = {}, sums[4][most_channels / 32] = {};
  for (int r = 0; r < 4; ++r) most[r] = -INFINITY;

  const int64_t first = s.first_key(start) / plain_keys * plain_keys, end = s.end_key(start + count - 1, keys);
  for (int64_t j0 = first; j0 < end; j0 += plain_keys) {
    float scores[4] = {};
    for (int d0 = 0; d0 < D; d0 += half) {
      const int width = D - d0 < half ? D - d0 : half;
      __syncthreads();
      for (int i = thread; i < plain_queries * width; i += 256) {
        const int r = i / width, d = i % width;
        queries[r * half + d] = r < count ? q.row(q0 + r)[column + d0 + d] : 0;
      }
      for (int i = thread; i < plain_keys * width; i += 256) {
        const int r = i / width, d = i % width;
        tile[r * (half + 1) + d] = j0 + r < keys ? k.row(kv0 + j0 + r)[kv_column + d0 + d] : 0;
      }
      __syncthreads();
      for (int d = 0; d < width; ++d) {
        const float key = tile[lane * (half + 1) + d];
        for (int r = 0; r < 4; ++r) scores[r] += queries[(4 * warp + r) * half + d] * key;
      }
    }
    float share[4];
    for (int r = 0; r < 4; ++r) {
      const int64_t i = start + 4 * warp + r, j = j0 + lane;
      const bool seen = 4 * warp + r < count && j < keys && s.sees(i, j);
      const float score = seen ? scores[r] * s.scale + s.biased(head, i, j) : -INFINITY;
      const float now = fmaxf(most[r], warp_max(score));
      const float base = now == -INFINITY ? 0 : now, shrink = expf(most[r] - base);
      share[r] = expf(score - base);
      total[r] = total[r] * shrink + warp_sum(share[r]);
      most[r] = now;
      for (int c = 0; c < most_channels / 32; ++c) sums[r][c] *= shrink;
    }
    for (int d0 = 0; d0 < D; d0 += half) {
      const int width = D - d0 < half ? D - d0 : half;
      __syncthreads();
      for (int i = thread; i < plain_keys * width; i += 256) {
        const int r = i / width, d = i % width;
        tile[r * (half + 1) + d] = j0 + r < keys ? v.row(kv0 + j0 + r)[kv_column + d0 + d] : 0;
      }
      __syncthreads();
      for (int j = 0; j < plain_keys; ++j) {
        float p[4];
        for (int r = 0; r < 4; ++r) p[r] = __shfl_sync(full_warp, share[r], j);
#pragma unroll
        for (int c = 0; c < half / 32; ++c) {
          const float value = 32 * c + lane < width ? tile[j * (half + 1) + 32 * c + lane] : 0;
          // The index must be known to the compiler for sums to stay in registers.
          if (d0 == 0)
            for (int r = 0; r < 4; ++r) sums[r][c] += p[r] * value;
          else
            for (int r = 0; r < 4; ++r) sums[r][half / 32 + c] += p[r] * value;
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    if (4 * warp + r >= count) continue;
#pragma unroll
    for (int c = 0; c < most_channels / 32; ++c) {
      const int d = 32 * c + lane;
      if (d < D) y.row(q0 + 4 * warp + r)[column + d] = sums[r][c] / total[r];
    }
  }
}

/// Two neighbouring channels of a head as bf16; zeros beyond its channels.
__device__ __forceinline__ uint32_t pair_of(const View& m, int64_t row, int column, int d, int head_dim) {
  const float* from = m.row(row) + column;
  return pack_bf16(d < head_dim ? from[d] : 0, d + 1 < head_dim ? from[d + 1] : 0);
}

/// Rows [first, first + count) of a head, at most 64, into shared memory with 128 threads; zeros below them.
template <int D>
__device__ __forceinline__ void load_tile(uint16_t* tile, const View& m, int64_t first, int64_t count, int column, int head_dim) {
  const bool by_four = in_steps(m, 4) && column % 4 == 0 && head_dim % 4 == 0;
#pragma unroll 2
  for (int i = int(threadIdx.x); i < 64 * D / 4; i += 128) {
    const int r = i / (D / 4), d = i % (D / 4) * 4;
    uint2 words = {0, 0};
    if (r < count && by_four && d < head_dim) {
      const float4 four = *reinterpret_cast<const float4*>(m.row(first + r) + column + d);
      words = {pack_bf16(four.x, four.y), pack_bf16(four.z, four.w)};
    } else if (r < count && !by_four) {
      words = {pair_of(m, first + r, column, d, head_dim), pair_of(m, first + r, column, d + 2, head_dim)};
    }
    *reinterpret_cast<uint2*>(&tile[r * (D + 8) + d]) = words;
  }
}

/// The 16 rows of a warp, among the same, as left fragments.
template <int D>
__device__ __forceinline__ void load_rows(uint32_t (&out)[D / 16][4], const View& m, int64_t first, int64_t count, int column, int head_dim) {
#pragma unroll
  for (int c = 0; c < D / 16; ++c)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = int(threadIdx.x) / 32 * 16 + int(threadIdx.x) % 32 / 4 + i % 2 * 8;
      out[c][i] = r < count ? pair_of(m, first + r, column, 16 * c + i / 2 * 8 + int(threadIdx.x) % 4 * 2, head_dim) : 0;
    }
}

/// The products of a warp's 16 rows with rows 16 n .. of a tile: two blocks of eight columns.
template <int D>
__device__ __forceinline__ void multiply_rows(float (&out)[2][4], const uint32_t (&rows)[D / 16][4], const uint16_t* tile, int n) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int c = 0; c < D / 16; ++c) {
    uint32_t b[4];
    load_matrices(b, &tile[(16 * n + lane / 16 * 8 + lane % 8) * (D + 8) + 16 * c + lane / 8 % 2 * 8]);
    mma_bf16(out[0], rows[c], b[0], b[1]);
    mma_bf16(out[1], rows[c], b[2], b[3]);
  }
}

/// sums += shares [16, 16] times rows 16 n .. of a tile.
template <int D>
__device__ __forceinline__ void add_shares(float (&sums)[D / 8][4], const float (&shares)[2][4], const uint16_t* tile, int n) {
  const int lane = int(threadIdx.x) % 32;
  const uint32_t a[4] = {pack_bf16(shares[0][0], shares[0][1]), pack_bf16(shares[0][2], shares[0][3]), pack_bf16(shares[1][0], shares[1][1]),
                         pack_bf16(shares[1][2], shares[1][3])};
#pragma unroll
  for (int c = 0; c < D / 16; ++c) {
    uint32_t b[4];
    load_matrices_transposed(b, &tile[(16 * n + lane % 16) * (D + 8) + 16 * c + lane / 16 * 8]);
    mma_bf16(sums[2 * c], a, b[0], b[1]);
    mma_bf16(sums[2 * c + 1], a, b[2], b[3]);
  }
}

/// The sums of a warp's 16 rows to where those rows lie.
template <int D>
__device__ __forceinline__ void store_rows(const View& m, int64_t first, int64_t count, int column, int head_dim, const float (&sums)[D / 8][4],
                                           const float (&factor)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = int(threadIdx.x) / 32 * 16 + int(threadIdx.x) % 32 / 4 + 8 * half;
    if (r >= count) continue;
    float* to = m.row(first + r) + column;
#pragma unroll
    for (int c = 0; c < D / 8; ++c)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int d = 8 * c + int(threadIdx.x) % 4 * 2 + e;
        if (d < head_dim) to[d] = sums[c][2 * half + e] * factor[half];
      }
  }
}

/// bf16 on tensor cores. A block has 64 queries of one head, 16 a warp, and keys by 64. D: channels, rounded up to a multiple of 16.
template <int D>
__global__ void __launch_bounds__(128) attention_bf16(View q, View k, View v, View y, Shape s) {
  alignas(16) __shared__ uint16_t key_tile[64 * (D + 8)];  // rows lie 16 bytes further in the banks than the row before
  alignas(16) __shared__ uint16_t value_tile[64 * (D + 8)];
  const int head = int(blockIdx.y), warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const auto [q0, count, kv0, keys, start, column, kv_column] = own_queries(s, 64, blockIdx.z);
  if (count <= 0) return;

  uint32_t queries[D / 16][4];
  load_rows<D>(queries, q, q0, count, column, s.head_dim);
  float sums[D / 8][4] = {}, most[2] = {-INFINITY, -INFINITY}, total[2] = {};

  const int64_t first = s.first_key(start) / 64 * 64, end = s.end_key(start + count - 1, keys);
  for (int64_t j0 = first; j0 < end; j0 += 64) {
    __syncthreads();
    load_tile<D>(key_tile, k, kv0 + j0, keys - j0, kv_column, s.head_dim);
    load_tile<D>(value_tile, v, kv0 + j0, keys - j0, kv_column, s.head_dim);
    __syncthreads();
    float scores[4][2][4] = {};  // by 16 keys, and eight
#pragma unroll
    for (int n = 0; n < 4; ++n) multiply_rows<D>(scores[n], queries, key_tile, n);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = 16 * warp + lane / 4 + 8 * half;
      const int64_t i = start + r;
      float now = most[half];
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int64_t j = j0 + 8 * n + lane % 4 * 2 + e;
          float& score = scores[n / 2][n % 2][2 * half + e];
          score = r < count && j < keys && s.sees(i, j) ? score * s.scale + s.biased(head, i, j) : -INFINITY;
          now = fmaxf(now, score);
        }
      now = row_max(now);
      const float base = now == -INFINITY ? 0 : now, shrink = expf(most[half] - base);
      most[half] = now;
      float own = 0;
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& score = scores[n / 2][n % 2][2 * half + e];
          score = expf(score - base);
          own += score;
        }
      total[half] = total[half] * shrink + own;  // of this lane's keys
#pragma unroll
      for (int c = 0; c < D / 8; ++c) sums[c][2 * half] *= shrink, sums[c][2 * half + 1] *= shrink;
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) add_shares<D>(sums, scores[n], value_tile, n);
  }
  float factor[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) factor[half] = 1 / row_sum(total[half]);
  store_rows<D>(y, q0, count, column, s.head_dim, sums, factor);
}

// ---- backward: scores are computed again, once for the gradient by the queries, once for that by keys and values

/// Of one query and head: largest score, sum of exponentials, mean of the gradients by the probabilities.
struct Row {
  float most, total, mean;
};

__device__ float dot(const float* a, const float* b, int n) {
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

/// The sequence that a row belongs to.
__device__ int sequence_of(const int32_t* offsets, int sequences, int64_t row) {
  int b = 0;
  for (int end = sequences; end - b > 1;) {
    const int middle = (b + end) / 2;
    if (offsets[middle] <= row) b = middle;
    else end = middle;
  }
  return b;
}

/// A warp a query and head.
__global__ void attention_backward_query_f32(View q, View k, View v, View dy, View dq, Row* rows, Shape s) {
  const int64_t row = blockIdx.x, D = s.head_dim;
  const int head = int(blockIdx.y), lane = int(threadIdx.x), b = sequence_of(s.q_offsets, s.sequences, row);
  const int64_t kv0 = s.kv_offsets[b], keys = s.kv_offsets[b + 1] - kv0, i = s.q_starts[b] + row - s.q_offsets[b];
  const float *query = q.row(row) + head * D, *slope = dy.row(row) + head * D;
  const int64_t kv_column = head / s.group * D, first = s.first_key(i), end = s.end_key(i, keys);
  auto score_of = [&](int64_t j) { return dot(query, k.row(kv0 + j) + kv_column, int(D)) * s.scale + s.biased(head, i, j); };
  float most = -INFINITY, total = 0, mean = 0;
  for (int64_t j = first + lane; j < end; j += 32) most = fmaxf(most, score_of(j));
  most = warp_max(most);
  for (int64_t j = first + lane; j < end; j += 32) {
    const float p = expf(score_of(j) - most);
    total += p;
    mean += p * dot(slope, v.row(kv0 + j) + kv_column, int(D));
  }
  total = warp_sum(total);
  mean = warp_sum(mean) / total;
  if (lane == 0) rows[row * s.heads + head] = {most, total, mean};
  float sums[most_channels / 32] = {};
  for (int64_t j0 = first; j0 < end; j0 += 32) {
    const int64_t j = j0 + lane;
    const float ds = j < end ? expf(score_of(j) - most) / total * (dot(slope, v.row(kv0 + j) + kv_column, int(D)) - mean) * s.scale : 0;
    for (int n = 0; n < 32 && j0 + n < end; ++n) {
      const float share = __shfl_sync(full_warp, ds, n);
      const float* key = k.row(kv0 + j0 + n) + kv_column;
#pragma unroll
      for (int c = 0; c < most_channels / 32; ++c)
        if (32 * c + lane < D) sums[c] += share * key[32 * c + lane];
    }
  }
#pragma unroll
  for (int c = 0; c < most_channels / 32; ++c)
    if (32 * c + lane < D) dq.row(row)[head * D + 32 * c + lane] = sums[c];
}

/// A warp a key and its head.
__global__ void attention_backward_key_f32(View q, View k, View v, View dy, View dk, View dv, const Row* rows, Shape s) {
  const int64_t row = blockIdx.x, D = s.head_dim;
  const int kv_head = int(blockIdx.y), lane = int(threadIdx.x), b = sequence_of(s.kv_offsets, s.sequences, row);
  const int64_t j = row - s.kv_offsets[b], q0 = s.q_offsets[b], count = s.q_offsets[b + 1] - q0;
  const float *key = k.row(row) + kv_head * D, *value = v.row(row) + kv_head * D;
  float keys[most_channels / 32] = {}, values[most_channels / 32] = {};
  for (int head = kv_head * s.group; head < (kv_head + 1) * s.group; ++head)
    for (int64_t n0 = 0; n0 < count; n0 += 32) {
      const int64_t n = n0 + lane, i = s.q_starts[b] + n;
      float p = 0, ds = 0;
      if (n < count && s.sees(i, j)) {
        const Row of = rows[(q0 + n) * s.heads + head];
        p = expf(dot(q.row(q0 + n) + head * D, key, int(D)) * s.scale + s.biased(head, i, j) - of.most) / of.total;
        ds = p * (dot(dy.row(q0 + n) + head * D, value, int(D)) - of.mean) * s.scale;
      }
      for (int m = 0; m < 32 && n0 + m < count; ++m) {
        const float share = __shfl_sync(full_warp, p, m), slope = __shfl_sync(full_warp, ds, m);
        const float *query = q.row(q0 + n0 + m) + head * D, *above = dy.row(q0 + n0 + m) + head * D;
#pragma unroll
        for (int c = 0; c < most_channels / 32; ++c) {
          const int d = 32 * c + lane;
          if (d < D) keys[c] += slope * query[d], values[c] += share * above[d];
        }
      }
    }
#pragma unroll
  for (int c = 0; c < most_channels / 32; ++c) {
    const int d = 32 * c + lane;
    if (d < D) dk.row(row)[kv_head * D + d] = keys[c], dv.row(row)[kv_head * D + d] = values[c];
  }
}

/// The gradient by the queries on tensor cores, as attention_bf16 is divided: keys come twice, first for what rows are divided by and their
/// mean, then for the gradient.
template <int D>
__global__ void __launch_bounds__(128) attention_backward_query_bf16(View q, View k, View v, View dy, View dq, Row* rows, Shape s) {
  alignas(16) __shared__ uint16_t key_tile[64 * (D + 8)];
  alignas(16) __shared__ uint16_t value_tile[64 * (D + 8)];
  const int head = int(blockIdx.y), warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const auto [q0, count, kv0, keys, start, column, kv_column] = own_queries(s, 64, blockIdx.z);
  if (count <= 0) return;
  uint32_t queries[D / 16][4], slopes[D / 16][4];
  load_rows<D>(queries, q, q0, count, column, s.head_dim);
  load_rows<D>(slopes, dy, q0, count, column, s.head_dim);

  float most[2] = {-INFINITY, -INFINITY}, total[2] = {}, mean[2] = {}, sums[D / 8][4] = {};
  const int64_t first = s.first_key(start) / 64 * 64, end = s.end_key(start + count - 1, keys);
  for (int pass = 0; pass < 2; ++pass) {
    for (int64_t j0 = first; j0 < end; j0 += 64) {
      __syncthreads();
      load_tile<D>(key_tile, k, kv0 + j0, keys - j0, kv_column, s.head_dim);
      load_tile<D>(value_tile, v, kv0 + j0, keys - j0, kv_column, s.head_dim);
      __syncthreads();
      for (int n = 0; n < 4; ++n) {
        float scores[2][4] = {}, gradients[2][4] = {};
        multiply_rows<D>(scores, queries, key_tile, n);
        multiply_rows<D>(gradients, slopes, value_tile, n);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int r = 16 * warp + lane / 4 + 8 * half;
          const int64_t i = start + r;
          float now = most[half];
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int64_t j = j0 + 16 * n + e / 2 * 8 + lane % 4 * 2 + e % 2;
            float& score = scores[e / 2][2 * half + e % 2];
            score = r < count && j < keys && s.sees(i, j) ? score * s.scale + s.biased(head, i, j) : -INFINITY;
            now = fmaxf(now, score);
          }
          if (pass == 0) {
            now = row_max(now);
            const float base = now == -INFINITY ? 0 : now, shrink = expf(most[half] - base);
            most[half] = now;
            total[half] *= shrink, mean[half] *= shrink;
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              const float p = expf(scores[e / 2][2 * half + e % 2] - base);
              total[half] += p;
              mean[half] += p * gradients[e / 2][2 * half + e % 2];
            }
          } else {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              float& score = scores[e / 2][2 * half + e % 2];
              score = expf(score - most[half]) / total[half] * (gradients[e / 2][2 * half + e % 2] - mean[half]) * s.scale;
            }
          }
        }
        if (pass == 1) add_shares<D>(sums, scores, key_tile, n);
      }
    }
    if (pass == 1) break;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = 16 * warp + lane / 4 + 8 * half;
      total[half] = row_sum(total[half]);
      mean[half] = row_sum(mean[half]) / total[half];
      if (r < count && lane % 4 == 0) rows[(q0 + r) * s.heads + head] = {most[half], total[half], mean[half]};
      if (r >= count) most[half] = 0, total[half] = 1, mean[half] = 0;  // no row: nothing, and not a NaN
    }
  }
  const float factor[2] = {1, 1};
  store_rows<D>(dq, q0, count, column, s.head_dim, sums, factor);
}

/// The gradients by keys and values on tensor cores. A block has 64 keys of one head, 16 a warp; queries of all heads that use them come by 64.
template <int D>
__global__ void __launch_bounds__(128) attention_backward_key_bf16(View q, View k, View v, View dy, View dk, View dv, const Row* rows, Shape s) {
  alignas(16) __shared__ uint16_t query_tile[64 * (D + 8)];
  alignas(16) __shared__ uint16_t slope_tile[64 * (D + 8)];
  __shared__ Row tile_rows[64];
  const int b = int(blockIdx.x), kv_head = int(blockIdx.y), warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int64_t kv0 = s.kv_offsets[b], keys = s.kv_offsets[b + 1] - kv0, j0 = int64_t(blockIdx.z) * 64;
  if (j0 >= keys) return;
  const int64_t q0 = s.q_offsets[b], start = s.q_starts[b];
  const int queries = int(s.q_offsets[b + 1] - q0), count = int(keys - j0 < 64 ? keys - j0 : 64);
  const int kv_column = kv_head * s.head_dim;
  uint32_t own_keys[D / 16][4], own_values[D / 16][4];
  load_rows<D>(own_keys, k, kv0 + j0, count, kv_column, s.head_dim);
  load_rows<D>(own_values, v, kv0 + j0, count, kv_column, s.head_dim);

  float key_sums[D / 8][4] = {}, value_sums[D / 8][4] = {};
  // Queries that see one of these keys: i >= j - right and i <= j + left.
  const int64_t low = s.right < 0 ? 0 : j0 - s.right - start, high = s.left < 0 ? queries : j0 + count + s.left - start;
  const int first = int(low < 0 ? 0 : low), end = int(high < queries ? high : queries);
  for (int head = kv_head * s.group; head < (kv_head + 1) * s.group; ++head)
    for (int n0 = first; n0 < end; n0 += 64) {
      __syncthreads();
      load_tile<D>(query_tile, q, q0 + n0, queries - n0, head * s.head_dim, s.head_dim);
      load_tile<D>(slope_tile, dy, q0 + n0, queries - n0, head * s.head_dim, s.head_dim);
      if (threadIdx.x < 64 && n0 + int(threadIdx.x) < queries) tile_rows[threadIdx.x] = rows[(q0 + n0 + threadIdx.x) * s.heads + head];
      __syncthreads();
      for (int n = 0; n < 4; ++n) {
        float shares[2][4] = {}, slopes[2][4] = {};
        multiply_rows<D>(shares, own_keys, query_tile, n);
        multiply_rows<D>(slopes, own_values, slope_tile, n);
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          const int m = 16 * n + e / 4 * 8 + lane % 4 * 2 + e % 2, r = 16 * warp + lane / 4 + e / 2 % 2 * 8;
          const int64_t i = start + n0 + m, j = j0 + r;
          float &share = shares[e / 4][e % 4], &slope = slopes[e / 4][e % 4];
          if (n0 + m < queries && r < count && s.sees(i, j)) {
            const Row of = tile_rows[m];
            share = expf(share * s.scale + s.biased(head, i, j) - of.most) / of.total;
            slope = share * (slope - of.mean) * s.scale;
          } else {
            share = slope = 0;
          }
        }
        add_shares<D>(value_sums, shares, slope_tile, n);
        add_shares<D>(key_sums, slopes, query_tile, n);
      }
    }
  const float factor[2] = {1, 1};
  store_rows<D>(dk, kv0 + j0, count, kv_column, s.head_dim, key_sums, factor);
  store_rows<D>(dv, kv0 + j0, count, kv_column, s.head_dim, value_sums, factor);
}

/// A warp a head and distance i - j.
__global__ void attention_backward_bias_f32(View q, View k, View v, View dy, const Row* rows, float* dbias, Shape s) {
  const int64_t distance = int64_t(blockIdx.x) - s.bias_reach, D = s.head_dim;
  const int head = int(blockIdx.y), lane = int(threadIdx.x);
  const int64_t kv_column = head / s.group * D;
  float sum = 0;
  for (int b = 0; b < s.sequences; ++b) {
    const int64_t q0 = s.q_offsets[b], count = s.q_offsets[b + 1] - q0, kv0 = s.kv_offsets[b], keys = s.kv_offsets[b + 1] - kv0;
    for (int64_t n = lane; n < count; n += 32) {
      const int64_t i = s.q_starts[b] + n, j = i - distance;
      if (j < 0 || j >= keys || !s.sees(i, j)) continue;
      const Row of = rows[(q0 + n) * s.heads + head];
      const float p = expf(dot(q.row(q0 + n) + head * D, k.row(kv0 + j) + kv_column, int(D)) * s.scale + s.biased(head, i, j) - of.most) / of.total;
      sum += p * (dot(dy.row(q0 + n) + head * D, v.row(kv0 + j) + kv_column, int(D)) - of.mean);
    }
  }
  sum = warp_sum(sum);
  if (lane == 0) dbias[head * (2 * s.bias_reach + 1) + s.bias_reach + distance] += sum;
}

Shape shape_of(Arguments& args, const AttentionArgs& a) {
  if (a.head_dim > most_channels)
    fail("BACKEND_UNSUPPORTED", "cuda: attention: expected heads of at most ", most_channels, " channels, got ", a.head_dim);
  return {args.in(a.q_offsets, a.sequences + 1),
          args.in(a.kv_offsets, a.sequences + 1),
          args.in(a.q_starts, a.sequences),
          a.sequences,
          a.heads,
          a.heads / a.kv_heads,
          a.head_dim,
          a.scale,
          a.left,
          a.right,
          args.in(a.bias, a.heads * (2 * a.bias_reach + 1)),
          a.bias_reach};
}

}  // namespace

int64_t longest(const int32_t* offsets, int sequences) {
  int64_t most = 0;
  for (int b = 0; b < sequences; ++b) most = std::max<int64_t>(most, offsets[b + 1] - offsets[b]);
  return most;
}

void attention(Context& context, const AttentionArgs& a) {
  Arguments args(context);
  // Rows of one call may be part of a longer matrix, which offsets count from its beginning.
  const Shape s = shape_of(args, a);
  if (args.device.warpgroups && a.reduced && AttentionArgs::narrow_heads(a.head_dim) && !a.bias) {
    attention_by_warpgroups(args, a, s);
    return;
  }
  const View q = args.in(a.q), k = args.in(a.k), v = args.in(a.v), y = args.inout(a.y);
  const auto run = [&](auto kernel, int queries, dim3 block) {
    launch(args.device, kernel, dim3(unsigned(a.sequences), unsigned(a.heads), blocks(longest(a.q_offsets, a.sequences), queries)), block, q, k, v, y,
           s);
  };
  if (!a.reduced || a.head_dim > 128) run(attention_f32, plain_queries, dim3(32, 8));
  else if (a.head_dim <= 32) run(attention_bf16<32>, 64, dim3(128));
  else if (a.head_dim <= 64) run(attention_bf16<64>, 64, dim3(128));
  else if (a.head_dim <= 96) run(attention_bf16<96>, 64, dim3(128));
  else run(attention_bf16<128>, 64, dim3(128));
}

void attention_backward(Context& context, const AttentionBackwardArgs& args_) {
  const AttentionArgs& a = args_.forward;
  Arguments args(context);
  const Shape s = shape_of(args, a);
  if (args.device.warpgroups && a.reduced && AttentionArgs::narrow_heads(a.head_dim) && !a.bias) {
    attention_backward_by_warpgroups(args, args_, s);
    return;
  }
  const View q = args.in(a.q), k = args.in(a.k), v = args.in(a.v), dy = args.in(args_.dy);
  const View dq = args.inout(args_.dq), dk = args.inout(args_.dk), dv = args.inout(args_.dv);
  Row* rows = args.scratch<Row>(q.rows * a.heads);
  const auto on_tensor_cores = [&](auto by_query, auto by_key) {
    launch(args.device, by_query, dim3(unsigned(a.sequences), unsigned(a.heads), blocks(longest(a.q_offsets, a.sequences), 64)), dim3(128), q, k, v,
           dy, dq, rows, s);
    launch(args.device, by_key, dim3(unsigned(a.sequences), unsigned(a.kv_heads), blocks(longest(a.kv_offsets, a.sequences), 64)), dim3(128), q, k, v,
           dy, dk, dv, static_cast<const Row*>(rows), s);
  };
  if (a.reduced && a.head_dim <= 32) on_tensor_cores(attention_backward_query_bf16<32>, attention_backward_key_bf16<32>);
  else if (a.reduced && a.head_dim <= 64) on_tensor_cores(attention_backward_query_bf16<64>, attention_backward_key_bf16<64>);
  else if (a.reduced && a.head_dim <= 96) on_tensor_cores(attention_backward_query_bf16<96>, attention_backward_key_bf16<96>);
  else if (a.reduced && a.head_dim <= 128) on_tensor_cores(attention_backward_query_bf16<128>, attention_backward_key_bf16<128>);
  else {
    launch(args.device, attention_backward_query_f32, dim3(unsigned(q.rows), unsigned(a.heads)), dim3(32), q, k, v, dy, dq, rows, s);
    launch(args.device, attention_backward_key_f32, dim3(unsigned(k.rows), unsigned(a.kv_heads)), dim3(32), q, k, v, dy, dk, dv,
           static_cast<const Row*>(rows), s);
  }
  if (args_.dbias)
    launch(args.device, attention_backward_bias_f32, dim3(unsigned(2 * a.bias_reach + 1), unsigned(a.heads)), dim3(32), q, k, v, dy,
           static_cast<const Row*>(rows), args.inout(args_.dbias, a.heads * (2 * a.bias_reach + 1)), s);
}

}  // namespace conan::cuda
