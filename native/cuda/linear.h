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
  bool in_pairs;                 // two neighbouring columns lie so that they can be read and written together
  uint16_t* narrow_y = nullptr;  // bf16 instead of y
  int64_t narrow_stride = 0;

  /// Sums of the packed columns n (even) and n + 1; `rows` of the weight.
  __device__ void pair(int64_t t, int64_t n, float first, float second, int64_t rows) const {
    if (!gated && narrow_y) {
      if (n >= rows) return;
      const float low = activated(activation, first + (bias ? bias[n] : 0)), high = activated(activation, second + (bias ? bias[n + 1] : 0));
      *reinterpret_cast<uint32_t*>(narrow_y + t * narrow_stride + n) = pack_bf16(low, high);
      return;
    }
    if (!gated && in_pairs && n + 1 < rows) {
      float2 v = {activated(activation, first + (bias ? bias[n] : 0)), activated(activation, second + (bias ? bias[n + 1] : 0))};
      if (residual.data) {
        const float2 r = *reinterpret_cast<const float2*>(residual.row(t) + n);
        v.x += r.x, v.y += r.y;
      }
      *reinterpret_cast<float2*>(y.row(t) + n) = v;
      return;
    }
    if (!gated) {
      if (n < rows) one(t, n, first + (bias ? bias[n] : 0));
      if (n + 1 < rows) one(t, n + 1, second + (bias ? bias[n + 1] : 0));
      return;
    }
    if (n >= rows) return;
    const int64_t column = n / 2;
    const float gate = first + (bias ? bias[column] : 0), value = second + (bias ? bias[rows / 2 + column] : 0);
    float v = activated(activation, gate) * value;
    if (narrow_y) {
      narrow_y[t * narrow_stride + column] = uint16_t(pack_bf16(v, 0));
      return;
    }
    if (residual.data) v += residual.row(t)[column];
    y.row(t)[column] = v;
  }

 private:
  __device__ void one(int64_t t, int64_t n, float sum) const {
    float v = activated(activation, sum);
    if (residual.data) v += residual.row(t)[n];
    y.row(t)[n] = v;
  }
};

/// Where a block's tile lies, in tiles: by groups of eight rows of tiles, which are neighbours in time and meet the same columns in the cache;
/// in a group one column of tiles after the other.
struct TilePlace {
  int m, n;
};
__device__ __forceinline__ TilePlace own_tile(int tiles_m, int tiles_n) {
  constexpr int group = 8;
  const int first = int(blockIdx.x) / (group * tiles_n) * group, deep = tiles_m - first < group ? tiles_m - first : group;
  const int within = int(blockIdx.x) % (group * tiles_n);
  return {first + within % deep, within / deep};
}

/// x as bf16, `stride` words a row, zeros behind the last column.
const uint16_t* rounded(Arguments& args, const View& x, int64_t stride);
/// Products of T such rows with bf16 weights on tensor cores: by warps, or by whole warpgroups (sm_90a).
void multiply_by_warps(Arguments& args, const uint16_t* x, int64_t T, const DeviceWeight& weight, const Epilogue& epilogue);
void multiply_by_warpgroups(Arguments& args, const uint16_t* x, int64_t T, const DeviceWeight& weight, const Epilogue& epilogue);
/// Products with int8 weights on tensor cores.
void multiply_whole(Arguments& args, const View& x, const DeviceWeight& weight, const Epilogue& epilogue);

}  // namespace conan::cuda
