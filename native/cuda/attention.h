// What attention's kernels share: which keys a query sees, and which queries a block has.
#pragma once
#include "cuda/cuda.h"

namespace conan::cuda {

/// Everything of attention but the matrices.
struct Shape {
  const int32_t *q_offsets, *kv_offsets, *q_starts;
  int sequences, heads, group, head_dim;
  float scale;
  int64_t left, right;
  const float* bias;
  int64_t bias_reach;

  __device__ bool sees(int64_t i, int64_t j) const { return (left < 0 || i - j <= left) && (right < 0 || j - i <= right); }
  __device__ float biased(int head, int64_t i, int64_t j) const { return bias ? bias[head * (2 * bias_reach + 1) + bias_reach + i - j] : 0; }
  /// Keys that queries from i to `last` see: [first, end) of `keys`.
  __host__ __device__ int64_t first_key(int64_t i) const { return left < 0 || i - left < 0 ? 0 : i - left; }
  __host__ __device__ int64_t end_key(int64_t last, int64_t keys) const { return right < 0 || last + right + 1 > keys ? keys : last + right + 1; }
};

/// The queries of a block, and what they look at.
struct Queries {
  int64_t q0, count, kv0, keys, start;  // first row, rows, first row of the keys, their number, position of the first query
  int column, kv_column;                // where the head's channels begin
};

/// Part z, of `size` queries, of head y and sequence x (of which there may be more than the other numbers of a grid hold); none where the
/// sequence has ended.
__device__ __forceinline__ Queries own_queries(const Shape& s, int64_t size, unsigned z) {
  const int b = int(blockIdx.x), head = int(blockIdx.y);
  const int64_t q0 = s.q_offsets[b] + int64_t(z) * size, left = s.q_offsets[b + 1] - q0;
  const int64_t kv0 = s.kv_offsets[b], start = s.q_starts[b] + q0 - s.q_offsets[b];
  return {q0, left < size ? left : size, kv0, s.kv_offsets[b + 1] - kv0, start, head * s.head_dim, head / s.group * s.head_dim};
}

/// Over the four lanes of a row of fragments.
__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(full_warp, x, 1);
  return x + __shfl_xor_sync(full_warp, x, 2);
}
__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(full_warp, x, 1));
  return fmaxf(x, __shfl_xor_sync(full_warp, x, 2));
}

/// By whole warpgroups (sm_90a), from bf16: AttentionArgs::narrow_heads and no bias.
void attention_by_warpgroups(Arguments& args, const AttentionArgs& a, const Shape& s);
void attention_backward_by_warpgroups(Arguments& args, const AttentionBackwardArgs& a, const Shape& s);

int64_t longest(const int32_t* offsets, int sequences);

}  // namespace conan::cuda
