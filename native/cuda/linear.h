// Weights as they lie on a device, and what becomes of a product with one.
#pragma once
#include "cuda/cuda.h"

namespace conan::cuda {

constexpr int pad = 64;  // columns of a packed row are a multiple of this

struct DeviceWeight : Weight {
  int64_t stride = 0;      // words of a packed row
  void* values = nullptr;  // [rows, stride] f32, bf16, f16 or i8
  float* scale = nullptr;  // [rows], i8 only, in packed order
  int index = 0;           // of the device

  DeviceWeight() = default;
  DeviceWeight(const DeviceWeight&) = delete;
  ~DeviceWeight() override {
    cudaSetDevice(index);
    cudaFree(values);
    cudaFree(scale);
  }
};

/// What happens to a row's sums behind the product; columns n of the packed weight.
struct Epilogue {
  const float* bias;  // in the order of the files: gates, then values
  Activation activation;
  bool gated;
  View residual, y;
  bool by_four;                  // four neighbouring columns lie so that they can be read and written together
  uint16_t* narrow_y = nullptr;  // bf16 instead of y
  int64_t narrow_stride = 0;

  /// Sums of the packed columns n (a multiple of four) to n + 3; `rows` of the weight.
  __device__ __forceinline__ void four(int64_t t, int64_t n, const float4& sums, int64_t rows) const {
    float v[4] = {sums.x, sums.y, sums.z, sums.w};
    const int count = n + 4 <= rows ? 4 : int(rows - n), outputs = gated ? count / 2 : count;
    if (count <= 0) return;
    const int64_t column = gated ? n / 2 : n;
    if (bias) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (i < count) v[i] += gated ? bias[column + i / 2 + i % 2 * rows / 2] : bias[n + i];
    }
    if (gated) {
#pragma unroll
      for (int i = 0; i < 2; ++i) v[i] = activated(activation, v[2 * i]) * v[2 * i + 1];
    } else if (activation != Activation::none) {
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = activated(activation, v[i]);
    }
    if (narrow_y) {
      uint16_t* to = narrow_y + t * narrow_stride + column;
      if (by_four && outputs == 4) *reinterpret_cast<uint2*>(to) = {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3])};
      else if (by_four && outputs == 2) *reinterpret_cast<uint32_t*>(to) = pack_bf16(v[0], v[1]);
      else {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (i < outputs) to[i] = uint16_t(pack_bf16(v[i], 0));
      }
      return;
    }
    float* to = y.row(t) + column;
    const float* from = residual.data ? residual.row(t) + column : nullptr;
    if (by_four && outputs == 4) {
      if (from) {
        const float4 r = *reinterpret_cast<const float4*>(from);
        v[0] += r.x, v[1] += r.y, v[2] += r.z, v[3] += r.w;
      }
      *reinterpret_cast<float4*>(to) = {v[0], v[1], v[2], v[3]};
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < outputs) to[i] = v[i] + (from ? from[i] : 0);
  }

  /// The sums of 16 rows by `columns`, which a warp has put into shared memory: numbers of row r begin at r * columns, by eights that are
  /// swizzled by the row.
  template <int columns>
  __device__ __forceinline__ void rows_of(const float* staged, int64_t t, int64_t T, int64_t n, int64_t rows) const {
    constexpr int passes = 16 * columns / 4 / 32;
    const int lane = int(threadIdx.x) % 32, r0 = lane / (columns / 4), c = lane % (columns / 4) * 4;
    constexpr int further = 32 / (columns / 4);  // rows from pass to pass
    const auto sums_of = [&](int pass) { return *reinterpret_cast<const float4*>(staged + staged_at<columns>(r0 + pass * further, c)); };
    if (bias || gated || activation != Activation::none || !by_four || n + columns > rows) {
#pragma unroll 1
      for (int pass = 0; pass < passes; ++pass)
        if (t + r0 + pass * further < T) four(t + r0 + pass * further, n + c, sums_of(pass), rows);
      return;
    }
    // Nothing but sums and a residual, whose rows are asked for some at a time.
    constexpr int some = passes < 4 ? passes : 4;
#pragma unroll 1
    for (int first = 0; first < passes; first += some) {
      float4 v[some];
#pragma unroll
      for (int i = 0; i < some; ++i) {
        const int64_t row = t + r0 + (first + i) * further;
        v[i] = {0, 0, 0, 0};
        if (residual.data && row < T) v[i] = *reinterpret_cast<const float4*>(residual.row(row) + n + c);
      }
#pragma unroll
      for (int i = 0; i < some; ++i) {
        const int64_t row = t + r0 + (first + i) * further;
        const float4 sums = sums_of(first + i);
        v[i].x += sums.x, v[i].y += sums.y, v[i].z += sums.z, v[i].w += sums.w;
        if (row >= T) continue;
        if (narrow_y) *reinterpret_cast<uint2*>(narrow_y + row * narrow_stride + n + c) = {pack_bf16(v[i].x, v[i].y), pack_bf16(v[i].z, v[i].w)};
        else *reinterpret_cast<float4*>(y.row(row) + n + c) = v[i];
      }
    }
  }
  template <int columns>
  static __device__ __forceinline__ int staged_at(int r, int c) {
    return r * columns + (c ^ (r % (columns / 8 < 4 ? columns / 8 : 4) * 8));
  }
};

/// Where a tile lies, in tiles: by groups of eight rows of tiles, which are neighbours in time and meet the same columns in the cache; in a
/// group one column of tiles after the other.
struct TilePlace {
  int m, n;
};
__device__ __forceinline__ TilePlace place_of(int tile, int tiles_m, int tiles_n) {
  constexpr int group = 8;
  const int first = tile / (group * tiles_n) * group, deep = tiles_m - first < group ? tiles_m - first : group;
  const int within = tile % (group * tiles_n);
  return {first + within % deep, within / deep};
}

/// Products of T such rows with bf16 weights on tensor cores: by warps, or by whole warpgroups (sm_90a).
void multiply_by_warps(Arguments& args, const uint16_t* x, int64_t T, const DeviceWeight& weight, const Epilogue& epilogue);
void multiply_by_warpgroups(Arguments& args, const uint16_t* x, int64_t T, const DeviceWeight& weight, const Epilogue& epilogue);
/// Products with int8 weights on tensor cores.
void multiply_whole(Arguments& args, const View& x, const DeviceWeight& weight, const Epilogue& epilogue);

}  // namespace conan::cuda
