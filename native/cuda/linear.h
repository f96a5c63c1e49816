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

/// What happens to a row's sums behind the product; columns n of the packed weight. What products of few bits add to a residual is bf16, as
/// PyTorch's results are, whatever the tile.
struct Epilogue {
  const float* bias;  // in the order of the files: gates, then values
  Activation activation;
  bool gated;
  View residual, y;
  bool by_four;                                               // four neighbouring columns lie so that they can be read and written together
  NarrowView narrow_y = {};                                   // bf16 instead of y
  const float *row_scale = nullptr, *column_scale = nullptr;  // of whole sums, in packed order

  /// Sums of the packed columns n (a multiple of four) to n + 3; `rows` of the weight. `rounds`: as products of few bits do.
  template <bool rounds, class Function>
  __device__ __forceinline__ void four(const Function& function, int64_t t, int64_t n, const float4& sums, int64_t rows) const {
    float v[4] = {sums.x, sums.y, sums.z, sums.w};
    const int count = n + 4 <= rows ? 4 : int(rows - n), outputs = gated ? count / 2 : count;
    if (count <= 0) return;
    const int64_t column = gated ? n / 2 : n;
    if (row_scale) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (i < count) v[i] *= row_scale[t] * column_scale[n + i];
    }
    if (bias) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (i < count) v[i] += gated ? bias[column + i / 2 + i % 2 * rows / 2] : bias[n + i];
    }
    if (gated) {
#pragma unroll
      for (int i = 0; i < 2; ++i) v[i] = function(v[2 * i]) * v[2 * i + 1];
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = function(v[i]);
    }
    if (rounds && residual.data) {
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = rounded_to_bf16(v[i]);
    }
    if (narrow_y.data) {
      uint16_t* to = narrow_y.row(t) + column;
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

  /// Two sums into shared memory, whole ones as they are: what follows is the same code for all, and these are many.
  static __device__ __forceinline__ void stage(float* to, float first, float second) { *reinterpret_cast<float2*>(to) = {first, second}; }
  static __device__ __forceinline__ void stage(float* to, int first, int second) { *reinterpret_cast<int2*>(to) = {first, second}; }
  __device__ __forceinline__ float4 staged_four(const float* from) const {
    if (!row_scale) return *reinterpret_cast<const float4*>(from);
    const int4 v = *reinterpret_cast<const int4*>(from);
    return {float(v.x), float(v.y), float(v.z), float(v.w)};
  }

  /// The sums of 16 rows by `columns`, which a warp has put into shared memory: numbers of row r begin at r * columns, by eights that are
  /// swizzled by the row.
  template <int columns>
  __device__ __forceinline__ void rows_of(const float* staged, int64_t t, int64_t T, int64_t n, int64_t rows) const {
    if (!by_four || n + columns > rows || (gated && residual.data)) return by_fours<columns>(staged, t, T, n, rows);
    with_function([&](auto function) { whole_rows_of<columns>(function, staged, t, T, n, rows); });
  }
  /// The same, whatever the layout, slowly.
  template <int columns>
  __device__ __forceinline__ void by_fours(const float* staged, int64_t t, int64_t T, int64_t n, int64_t rows) const {
    with_function([&](auto function) {
#pragma unroll 1
      for (int i = int(threadIdx.x) % 32; i < 4 * columns; i += 32) {
        const int r = i / (columns / 4), c = i % (columns / 4) * 4;
        if (t + r < T) four<true>(function, t + r, n + c, staged_four(staged + staged_at<columns>(r, c)), rows);
      }
    });
  }
  /// Hands over the activation, for products of few bits: it need not be exact, but is the same wherever it is used.
  template <class Use>
  __device__ __forceinline__ void with_function(const Use& use) const {
    switch (activation) {
      case Activation::none: return use([](float x) { return x; });
      case Activation::silu: return use(silu);
      case Activation::gelu_tanh:
        return use([](float x) { return x * logistic(x * (1.5957691216057308f * log2_e + 1.5957691216057308f * 0.044715f * log2_e * (x * x))); });
      case Activation::quick_gelu: return use([](float x) { return x * logistic(x * (1.702f * log2_e)); });
      case Activation::gelu_erf: return use([](float x) { return 0.5f * x * (1 + error_function(0.70710678118654752f * x)); });
      case Activation::relu: return use([](float x) { return fmaxf(x, 0); });
      case Activation::tanh: return use([](float x) { return 2 * logistic(x * (2 * log2_e)) - 1; });
    }
  }
  static __device__ __forceinline__ float silu(float x) { return x * logistic(x * log2_e); }
  template <int columns>
  static __device__ __forceinline__ int staged_at(int r, int c) {
    return r * columns + (c ^ (r % (columns / 8 < 4 ? columns / 8 : 4) * 8));
  }

 private:
  /// 1 / (1 + 2^-x)
  static __device__ __forceinline__ float logistic(float x) { return reciprocal(1 + power_of_two(-x)); }
  /// To 1.5e-7 (Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26).
  static __device__ __forceinline__ float error_function(float x) {
    const float y = fabsf(x), t = reciprocal(1 + 0.3275911f * y);
    const float sum = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
    return copysignf(1 - sum * power_of_two(-log2_e * (y * y)), x);
  }

  /// A lane has four columns, in every so many rows; some rows at a time, so that what they wait for comes together.
  template <int columns, class Function>
  __device__ __forceinline__ void whole_rows_of(const Function& function, const float* staged, int64_t t, int64_t T, int64_t n, int64_t rows) const {
    constexpr int step = 128 / columns, passes = 16 / step, some = passes < 4 ? passes : 4;
    const int lane = int(threadIdx.x) % 32, r0 = lane / (columns / 4), c = lane % (columns / 4) * 4;
    const int64_t column = gated ? (n + c) / 2 : n + c;
    float b[4] = {0, 0, 0, 0}, scale[4] = {1, 1, 1, 1};
    if (row_scale) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scale[i] = column_scale[n + c + i];
    }
    if (bias) {
#pragma unroll
      for (int i = 0; i < 4; ++i) b[i] = gated ? bias[column + i / 2 + i % 2 * rows / 2] : bias[column + i];
    }
#pragma unroll 1
    for (int first = r0; first < 16; first += some * step) {
      float4 v[some], added[some];
#pragma unroll
      for (int i = 0; i < some; ++i) {
        const int r = first + i * step;
        v[i] = staged_four(staged + staged_at<columns>(r, c));
        if (row_scale) {
          const float own = t + r < T ? row_scale[t + r] : 0;
          v[i] = {v[i].x * (own * scale[0]), v[i].y * (own * scale[1]), v[i].z * (own * scale[2]), v[i].w * (own * scale[3])};
        }
        added[i] = residual.data && t + r < T ? *reinterpret_cast<const float4*>(residual.row(t + r) + column) : float4{0, 0, 0, 0};
      }
#pragma unroll
      for (int i = 0; i < some; ++i) {
        const int64_t row = t + first + i * step;
        float x = function(v[i].x + b[0]), y_ = v[i].y + b[1], z = function(v[i].z + b[2]), w = v[i].w + b[3];
        if (row >= T) continue;
        if (gated) {
          x *= y_, z *= w;
          if (narrow_y.data) *reinterpret_cast<uint32_t*>(narrow_y.row(row) + column) = pack_bf16(x, z);
          else *reinterpret_cast<float2*>(y.row(row) + column) = {x, z};
        } else {
          y_ = function(y_), w = function(w);
          if (residual.data) x = rounded_to_bf16(x), y_ = rounded_to_bf16(y_), z = rounded_to_bf16(z), w = rounded_to_bf16(w);
          if (narrow_y.data) *reinterpret_cast<uint2*>(narrow_y.row(row) + column) = {pack_bf16(x, y_), pack_bf16(z, w)};
          else *reinterpret_cast<float4*>(y.row(row) + column) = {x + added[i].x, y_ + added[i].y, z + added[i].z, w + added[i].w};
        }
      }
    }
  }
};

/// rope of heads of 128 channels, as a product's results: queries, then keys, then what is not turned.
struct Rotation {
  static constexpr int head_dim = 128;
  struct Side {
    int heads;
    const float* norm_weight;
    float eps;
  };
  Side queries, keys;
  const float *cos, *sin;
  const int32_t* positions;

  __device__ __forceinline__ bool turns(int head) const { return head < queries.heads + keys.heads; }
  __device__ __forceinline__ Side side_of(int head) const {
    const bool first = head < queries.heads;
    return {first ? queries.heads : keys.heads, first ? queries.norm_weight : keys.norm_weight, first ? queries.eps : keys.eps};
  }
};

/// sum + `count` parts in their order, eight of which are asked for at a time.
__device__ __forceinline__ float with_parts(float sum, const float* from, int64_t apart, int count) {
  int part = 0;
  for (; part + 8 <= count; part += 8) {
    float some[8];
#pragma unroll
    for (int p = 0; p < 8; ++p) some[p] = from[(part + p) * apart];
#pragma unroll
    for (int p = 0; p < 8; ++p) sum += some[p];
  }
  for (; part < count; ++part) sum += from[part * apart];
  return sum;
}

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

/// Products with bf16 weights on tensor cores: by warps, of rows one behind the other, or by whole warpgroups (sm_90a). x has the weight's
/// columns up to its stride.
void multiply_by_warps(Arguments& args, const NarrowView& x, const DeviceWeight& weight, const Epilogue& epilogue);
/// `rotation`: what is to happen to the results; whether it has.
bool multiply_by_warpgroups(Arguments& args, const NarrowView& x, const DeviceWeight& weight, const Epilogue& epilogue,
                            const Rotation* rotation = nullptr);
/// The same with int8 weights, of T rows of whole numbers.
void multiply_by_warpgroups(Arguments& args, const int8_t* x, int64_t T, const DeviceWeight& weight, const Epilogue& epilogue);
/// Products with int8 weights on tensor cores.
void multiply_whole(Arguments& args, const View& x, const DeviceWeight& weight, const Epilogue& epilogue);

}  // namespace conan::cuda
