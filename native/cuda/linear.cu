// Weights on the device, and products with them. Packed rows of a gated weight alternate gate and value, so that one thread holds both
// halves of an output. Columns are padded with zeros to whole tiles. Every output is the sum over K in one fixed order, whatever the
// number of rows: a result does not depend on the rows beside it.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "cuda/linear.h"

namespace conan::cuda {

namespace {

size_t word_bytes(WeightFormat format) { return format == WeightFormat::f32 ? 4 : format == WeightFormat::i8 ? 1 : 2; }

// ---- packing

__device__ uint16_t to_f16(float x) {
#ifdef __CUDACC__
  return __half_as_ushort(__float2half_rn(x));
#else
  return f32_to_f16(x);
#endif
}

__device__ int64_t packed_row(int64_t row, int64_t rows, bool gated) { return !gated ? row : row < rows / 2 ? 2 * row : 2 * (row - rows / 2) + 1; }

constexpr int columns_packed = 256;

/// `broken` becomes `name`, if it is zero, by what is no number.
__device__ void require_number(float x, int name, int* broken) {
  if (!(fabsf(x) <= 3.402823466e38f)) atomicCAS(broken, 0, name);
}

/// A warp a row, of which y takes some columns (of whole numbers, which need the largest, all); `first`: the number of the part's first row
/// among all `rows`.
__global__ void pack_rows(const void* part, Dtype dtype, int64_t part_rows, int64_t K, int64_t first, int64_t rows, bool gated, WeightFormat format,
                          void* values, int64_t stride, float* scale, WeightSource::Change change, int name, int* broken) {
  const int64_t row = int64_t(blockIdx.x) * 8 + threadIdx.y;
  if (row >= part_rows) return;
  const int64_t to = packed_row(first + row, rows, gated);
  const float* const b = change.b + row * change.rank;
  const auto word = [&](int64_t k) {
    float x = file_word(part, dtype, row * K + k), sum = 0;
    for (int64_t r = 0; r < change.rank; ++r) sum += b[r] * (change.scale * change.a[r * K + k]);
    if (change.rank > 0) x += sum;
    require_number(x, name, broken);
    return x;
  };
  float factor = 0;
  if (format == WeightFormat::i8) {
    float most = 0;
    for (int64_t k = threadIdx.x; k < K; k += 32) most = fmaxf(fabsf(word(k)), most);
    most = warp_max(most);
    factor = most > 0 ? 127 / most : 0;
    if (threadIdx.x == 0) scale[to] = most / 127;
  }
  const int64_t begin = int64_t(blockIdx.y) * columns_packed,
                end = format == WeightFormat::i8 || begin + columns_packed > stride ? stride : begin + columns_packed;
  for (int64_t k = begin + threadIdx.x; k < end; k += 32) {
    const float x = k < K ? word(k) : 0;
    const int64_t at = to * stride + k;
    if (format == WeightFormat::f32) static_cast<float*>(values)[at] = x;
    if (format == WeightFormat::bf16) static_cast<uint16_t*>(values)[at] = uint16_t(pack_bf16(x, 0));
    if (format == WeightFormat::f16) static_cast<uint16_t*>(values)[at] = to_f16(x);
    if (format == WeightFormat::i8) static_cast<int8_t*>(values)[at] = int8_t(nearbyintf(x * factor));
  }
}

/// The same of a part with a change of few ranks, not in whole numbers: a thread has two columns of so many rows, and holds a's numbers.
constexpr int rows_changed = 64;

template <int ranks>
__global__ void __launch_bounds__(columns_packed / 2)
    pack_changed(const void* part, Dtype dtype, int64_t part_rows, int64_t K, int64_t first, int64_t rows, bool gated, WeightFormat format,
                 void* values, int64_t stride, WeightSource::Change change, int name, int* broken) {
  __shared__ float b[rows_changed][ranks];
  const int64_t row0 = int64_t(blockIdx.x) * rows_changed, k = int64_t(blockIdx.y) * columns_packed + 2 * threadIdx.x;
  for (int i = int(threadIdx.x); i < rows_changed * ranks; i += columns_packed / 2) {
    const int64_t row = row0 + i / ranks, r = i % ranks;
    b[i / ranks][r] = row < part_rows && r < change.rank ? change.b[row * change.rank + r] : 0;
  }
  float a[2][ranks];
#pragma unroll
  for (int e = 0; e < 2; ++e)
#pragma unroll
    for (int r = 0; r < ranks; ++r) a[e][r] = r < change.rank && k + e < K ? change.scale * change.a[r * K + k + e] : 0;
  __syncthreads();
  if (k >= stride) return;
#pragma unroll 4
  for (int i = 0; i < rows_changed; ++i) {
    const int64_t row = row0 + i;
    if (row >= part_rows) break;
    float x[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float sum = 0;
#pragma unroll
      for (int r = 0; r < ranks; ++r) sum += b[i][r] * a[e][r];
      x[e] = k + e < K ? file_word(part, dtype, row * K + k + e) + sum : 0;
      require_number(x[e], name, broken);
    }
    const int64_t at = packed_row(first + row, rows, gated) * stride + k;
    if (format == WeightFormat::f32) *reinterpret_cast<float2*>(static_cast<float*>(values) + at) = {x[0], x[1]};
    else if (format == WeightFormat::bf16) *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(values) + at) = pack_bf16(x[0], x[1]);
    else *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(values) + at) = uint32_t(to_f16(x[0])) | uint32_t(to_f16(x[1])) << 16;
  }
}

/// Columns become rows, zeros up to the stride; by tiles of 32 x 32, so that neighbours read and write neighbours.
__global__ void turn_f32(const float* from, int64_t rows, int64_t cols, int64_t from_stride, float* to, int64_t to_stride) {
  __shared__ float tile[32][33];
  const int64_t r0 = int64_t(blockIdx.x) * 32, c0 = int64_t(blockIdx.y) * 32;
  const int x = int(threadIdx.x), y = int(threadIdx.y);
  for (int i = y; i < 32; i += 8) tile[i][x] = r0 + i < rows && c0 + x < cols ? from[(r0 + i) * from_stride + c0 + x] : 0;
  __syncthreads();
  for (int i = y; i < 32; i += 8)
    if (c0 + i < cols && r0 + x < to_stride) to[(c0 + i) * to_stride + r0 + x] = tile[x][i];
}

/// The same of 16-bit words, by tiles of 64 x 64: a thread turns 4 x 4 of them in its registers. Both strides are multiples of 64.
constexpr int words_turned = 64;

__global__ void __launch_bounds__(256)
    turn_words(const uint16_t* from, int64_t rows, int64_t cols, int64_t from_stride, uint16_t* to, int64_t to_stride) {
  alignas(16) __shared__ uint2 tile[words_turned][words_turned / 4];  // fours of turned rows, swizzled by the row's own four
  const int64_t r0 = int64_t(blockIdx.x) * words_turned, c0 = int64_t(blockIdx.y) * words_turned;
  const int id = int(threadIdx.x), i = id / 16, j = id % 16;
  uint2 in[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const int64_t row = r0 + 4 * i + k;
    in[k] = row < rows ? *reinterpret_cast<const uint2*>(from + row * from_stride + c0 + 4 * j) : uint2{0, 0};
  }
#pragma unroll
  for (int m = 0; m < 4; ++m) {
    const auto pair = [&](const uint2& a, const uint2& b) {
      const uint32_t first = m < 2 ? a.x : a.y, second = m < 2 ? b.x : b.y;
      return m % 2 ? first >> 16 | (second & 0xffff0000u) : (first & 0xffff) | second << 16;
    };
    tile[4 * j + m][i ^ j] = {pair(in[0], in[1]), pair(in[2], in[3])};
  }
  __syncthreads();
#pragma unroll
  for (int at = id; at < words_turned * 8; at += 256) {
    const int n = at / 8, v = at % 8, own = n / 4;
    const uint2 *const both = &tile[n][2 * (v ^ own / 2)], &low = both[own % 2], &high = both[1 - own % 2];
    if (c0 + n < cols) *reinterpret_cast<int4*>(to + (c0 + n) * to_stride + r0 + 8 * v) = {int(low.x), int(low.y), int(high.x), int(high.y)};
  }
}

/// [cols, rows] f32 from packed whole numbers.
__global__ void unpack_transposed(const void* values, const float* scale, int64_t rows, int64_t cols, int64_t stride, float* out) {
  const int64_t k = int64_t(blockIdx.x) * 128 + threadIdx.x, n = blockIdx.y;
  if (k < cols) out[k * rows + n] = static_cast<const int8_t*>(values)[n * stride + k] * scale[n];
}

/// `there`: the parts lie on the device. finish() says whether they were numbers.
void fill(Arguments& args, const WeightSource& source, DeviceWeight& weight, bool there = false) {
  Device& device = args.device;
  int name = 0, *broken = nullptr;
  {
    std::lock_guard guard(device.filled_lock);
    Device::Filled& filled = device.filled[&args.context];
    if (!filled.broken) {
      void* memory = nullptr;
      check_memory(cudaMalloc(&memory, sizeof(int)), sizeof(int));
      check(cudaMemsetAsync(memory, 0, sizeof(int), device.main), "memset");
      filled.broken = static_cast<int*>(memory);
    }
    filled.names.push_back(source.name);
    name = int(filled.names.size()), broken = filled.broken;
  }
  int64_t first = 0;
  for (size_t i = 0; i < source.parts.size(); ++i) {
    const TensorView& part = source.parts[i];
    WeightSource::Change change = source.changes.empty() ? WeightSource::Change{} : source.changes[i];
    change.a = args.in(change.a, change.rank * weight.cols), change.b = args.in(change.b, part.shape[0] * change.rank);
    if (part.dtype != Dtype::f32 && part.dtype != Dtype::bf16 && part.dtype != Dtype::f16)
      fail("UNSUPPORTED_DTYPE", "tensor \"", source.name, "\": expected float32, bfloat16 or float16, got ", dtype_name(part.dtype));
    const void* bytes = there ? part.data : args.in(static_cast<const char*>(part.data), int64_t(part.bytes()));
    if (change.rank > 0 && change.rank <= 32 && weight.format != WeightFormat::i8) {
      launch(args.device, change.rank <= 16 ? pack_changed<16> : pack_changed<32>,
             dim3(blocks(part.shape[0], rows_changed), blocks(weight.stride, columns_packed)), dim3(columns_packed / 2), bytes, part.dtype,
             part.shape[0], weight.cols, first, weight.rows, weight.gated, weight.format, weight.values, weight.stride, change, name, broken);
    } else {
      const dim3 grid(blocks(part.shape[0], 8), weight.format == WeightFormat::i8 ? 1 : blocks(weight.stride, columns_packed));
      launch(args.device, pack_rows, grid, dim3(32, 8), bytes, part.dtype, part.shape[0], weight.cols, first, weight.rows, weight.gated,
             weight.format, weight.values, weight.stride, weight.scale, change, name, broken);
    }
    first += part.shape[0];
  }
}

std::unique_ptr<DeviceWeight> make(const Arguments& args, int64_t rows, int64_t cols, bool gated, WeightFormat format) {
  auto weight = std::make_unique<DeviceWeight>();
  weight->format = format;
  weight->rows = rows;
  weight->cols = cols;
  weight->gated = gated;
  weight->stride = (cols + pad - 1) / pad * pad;
  weight->index = args.device.index;
  weight->bytes = size_t(rows * weight->stride) * word_bytes(format) + (format == WeightFormat::i8 ? size_t(rows) * 4 : 0);
  const size_t bytes = size_t(rows * weight->stride) * word_bytes(format);
  check_memory(cudaMalloc(&weight->values, bytes), bytes);
  void* scale = nullptr;
  if (format == WeightFormat::i8) check_memory(cudaMalloc(&scale, size_t(rows) * sizeof(float)), size_t(rows) * sizeof(float));
  weight->scale = static_cast<float*>(scale);
  return weight;
}

// ---- products

/// Four neighbouring numbers of a row of a matrix, or of a packed weight; zeros where there are none.
__device__ __forceinline__ float4 four_of(const View& m, bool aligned, int64_t row, int64_t k) {
  if (row >= m.rows) return {0, 0, 0, 0};
  const float* from = m.row(row) + k;
  if (aligned && k + 4 <= m.cols) return *reinterpret_cast<const float4*>(from);
  return {k < m.cols ? from[0] : 0, k + 1 < m.cols ? from[1] : 0, k + 2 < m.cols ? from[2] : 0, k + 3 < m.cols ? from[3] : 0};
}
template <bool half>
__device__ __forceinline__ float4 four_of(const void* weight, int64_t at) {
  if constexpr (!half) return *reinterpret_cast<const float4*>(static_cast<const float*>(weight) + at);
  return {file_word(weight, Dtype::f16, at), file_word(weight, Dtype::f16, at + 1), file_word(weight, Dtype::f16, at + 2),
          file_word(weight, Dtype::f16, at + 3)};
}

/// float32 arithmetic: tiles of 64 `fours` rows and columns, of which a thread has 4 `fours` each, by fours; the next 16 columns along K
/// are read while the last are multiplied. Sums run over K in its order, whatever the tile.
template <bool half_weight, int fours>
__global__ void __launch_bounds__(256) gemm_f32(View x, const void* weight, int64_t N, int64_t stride, Epilogue epilogue) {
  constexpr int tile = 64 * fours, depth = 16;
  alignas(16) __shared__ float left[2][depth][tile + 4];
  alignas(16) __shared__ float right[2][depth][tile + 4];
  const int64_t t0 = int64_t(blockIdx.y) * tile, n0 = int64_t(blockIdx.x) * tile, steps = (x.cols + depth - 1) / depth;
  const bool aligned = in_steps(x, 4);
  const int id = int(threadIdx.x), row = id / 16, column = id % 16, own_k = id % 4 * 4;
  float sums[4 * fours][4 * fours] = {};
  float4 a[fours], b[fours];
  const auto read = [&](int64_t step) {
#pragma unroll
    for (int i = 0; i < fours; ++i) {
      const int64_t r = id / 4 + 64 * i, k = step * depth + own_k;
      a[i] = four_of(x, aligned, t0 + r, k);
      b[i] = n0 + r < N ? four_of<half_weight>(weight, (n0 + r) * stride + k) : float4{0, 0, 0, 0};
    }
  };
  const auto write = [&](int half) {
#pragma unroll
    for (int i = 0; i < fours; ++i) {
      const int r = id / 4 + 64 * i;
      left[half][own_k][r] = a[i].x, left[half][own_k + 1][r] = a[i].y, left[half][own_k + 2][r] = a[i].z, left[half][own_k + 3][r] = a[i].w;
      right[half][own_k][r] = b[i].x, right[half][own_k + 1][r] = b[i].y, right[half][own_k + 2][r] = b[i].z, right[half][own_k + 3][r] = b[i].w;
    }
  };
  read(0);
  write(0);
  __syncthreads();
  for (int64_t step = 0; step < steps; ++step) {
    const int half = int(step % 2);
    if (step + 1 < steps) read(step + 1);
#pragma unroll
    for (int k = 0; k < depth; ++k) {
      float l[4 * fours], r[4 * fours];
#pragma unroll
      for (int i = 0; i < fours; ++i) {
        const float4 u = *reinterpret_cast<const float4*>(&left[half][k][64 * i + 4 * row]);
        const float4 v = *reinterpret_cast<const float4*>(&right[half][k][64 * i + 4 * column]);
        l[4 * i] = u.x, l[4 * i + 1] = u.y, l[4 * i + 2] = u.z, l[4 * i + 3] = u.w;
        r[4 * i] = v.x, r[4 * i + 1] = v.y, r[4 * i + 2] = v.z, r[4 * i + 3] = v.w;
      }
#pragma unroll
      for (int i = 0; i < 4 * fours; ++i)
#pragma unroll
        for (int j = 0; j < 4 * fours; ++j) sums[i][j] += l[i] * r[j];
    }
    if (step + 1 < steps) write(1 - half);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4 * fours; ++i) {
    const int64_t t = t0 + i / 4 * 64 + 4 * row + i % 4;
    if (t >= x.rows) continue;
#pragma unroll
    for (int j = 0; j < fours; ++j)
      epilogue.four<false>([kind = epilogue.activation](float v) { return activated(kind, v); }, t, n0 + 64 * j + 4 * column,
                           {sums[i][4 * j], sums[i][4 * j + 1], sums[i][4 * j + 2], sums[i][4 * j + 3]}, N);
  }
}

/// Rows of a block of dy^T x, of which z is the part: in steps of 32, so that few results of many rows keep a whole GPU busy. Each part has
/// its own results, dw [parts, N, K], or, being the only one, adds to what is there.
struct Part {
  int64_t first, end;
  float* dw;
  bool add;
};
__device__ __forceinline__ Part own_rows(int64_t rows, const View& dw) {
  const int64_t steps = (rows + 31) / 32, first = steps * blockIdx.z / gridDim.z * 32, end = steps * (blockIdx.z + 1) / gridDim.z * 32;
  return {first, end < rows ? end : rows, dw.data + blockIdx.z * dw.rows * dw.stride, gridDim.z == 1};
}

/// dw [N, K] += dy^T x, sums over rows in their order.
__global__ void __launch_bounds__(256) gemm_transposed_f32(View dy, View x, View dw) {
  const Part part = own_rows(dy.rows, dw);
  __shared__ float left[16][68], right[16][68];
  const int64_t n0 = int64_t(blockIdx.y) * 64, k0 = int64_t(blockIdx.x) * 64;
  const int id = int(threadIdx.x), row = id / 16, column = id % 16;
  float sums[4][4] = {};
  for (int64_t t0 = part.first; t0 < part.end; t0 += 16) {
    for (int i = 0; i < 4; ++i) {
      const int c = id % 64, t = id / 64 + 4 * i;
      left[t][c] = t0 + t < part.end && n0 + c < dy.cols ? dy.row(t0 + t)[n0 + c] : 0;
      right[t][c] = t0 + t < part.end && k0 + c < x.cols ? x.row(t0 + t)[k0 + c] : 0;
    }
    __syncthreads();
#pragma unroll
    for (int t = 0; t < 16; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] += left[t][4 * row + i] * right[t][4 * column + j];
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t n = n0 + 4 * row + i, k = k0 + 4 * column + j;
      if (n >= dy.cols || k >= x.cols) continue;
      float& to = part.dw[n * dw.stride + k];
      to = (part.add ? to : 0) + sums[i][j];
    }
}

/// The same with bf16 products on tensor cores, by steps of 32 rows: tiles of 128 x 128, of 128 x 32 or of 32 x 128 (few columns, as low rank
/// has them). Both sides lie in shared memory as they come, and fragments are turned as they are read.
constexpr int step_rows = 32;

/// `columns` of a side: how a block reads them, four numbers a thread and pass.
template <int columns>
struct Side {
  static constexpr int lanes = columns / 4, at_once = 256 / lanes, passes = step_rows / at_once, stride = columns + 8;
};

template <bool narrow_left, bool narrow_right, int tile_m, int tile_n>
__global__ void __launch_bounds__(256) gemm_transposed_bf16(View dy, NarrowView narrow_dy, View x, NarrowView narrow_x, View dw) {
  using Left = Side<tile_m>;
  using Right = Side<tile_n>;
  // Eight warps, beside and below one another; fragments of 16 rows and of 8 columns of results in each.
  constexpr int beside = tile_m == tile_n ? 4 : tile_m < tile_n ? 8 : 1, below = 8 / beside, high = tile_m / below / 16, wide = tile_n / beside / 8;
  alignas(16) __shared__ uint16_t left[step_rows * Left::stride];
  alignas(16) __shared__ uint16_t right[step_rows * Right::stride];
  const int64_t n0 = int64_t(blockIdx.y) * tile_m, k0 = int64_t(blockIdx.x) * tile_n;
  const int id = int(threadIdx.x), warp = id / 32, lane = id % 32;
  const int warp_n = warp / beside * 16 * high, warp_k = warp % beside * 8 * wide;
  float sums[high][wide][4] = {};
  const Part part = own_rows(narrow_left ? narrow_dy.rows : dy.rows, dw);

  // They stay as they come until they are written, so that nobody waits for them before.
  auto read = [&](const auto& m, int64_t t0, int64_t c0, auto side, auto& held) {
    using S = decltype(side);
    constexpr bool narrow = sizeof(*m.data) == 2;
    const bool aligned = in_steps(m, 4);
#pragma unroll
    for (int i = 0; i < S::passes; ++i) {
      const int64_t t = t0 + id / S::lanes + S::at_once * i, c = c0 + 4 * (id % S::lanes);
      held[i] = {};
      if (t >= part.end) continue;
      const auto* from = m.row(t) + c;
      if (aligned && c + 4 <= m.cols) {
        held[i] = *reinterpret_cast<const std::remove_reference_t<decltype(held[i])>*>(from);
      } else if constexpr (narrow) {
        const auto word = [&](int e) { return c + e < m.cols ? uint32_t(from[e]) : 0; };
        held[i] = {word(0) | word(1) << 16, word(2) | word(3) << 16};
      } else {
        held[i] = {c < m.cols ? from[0] : 0, c + 1 < m.cols ? from[1] : 0, c + 2 < m.cols ? from[2] : 0, c + 3 < m.cols ? from[3] : 0};
      }
    }
  };
  auto write = [&](uint16_t* tile, auto side, const auto& held) {
    using S = decltype(side);
#pragma unroll
    for (int i = 0; i < S::passes; ++i) {
      uint2& to = *reinterpret_cast<uint2*>(&tile[(id / S::lanes + S::at_once * i) * S::stride + 4 * (id % S::lanes)]);
      if constexpr (sizeof held[i] == sizeof(uint2)) to = held[i];
      else to = {pack_bf16(held[i].x, held[i].y), pack_bf16(held[i].z, held[i].w)};
    }
  };
  std::conditional_t<narrow_left, uint2, float4> slopes[Left::passes];
  std::conditional_t<narrow_right, uint2, float4> inputs[Right::passes];
  auto read_both = [&](int64_t t0) {
    if constexpr (narrow_left) read(narrow_dy, t0, n0, Left(), slopes);
    else read(dy, t0, n0, Left(), slopes);
    if constexpr (narrow_right) read(narrow_x, t0, k0, Right(), inputs);
    else read(x, t0, k0, Right(), inputs);
  };

  read_both(part.first);
  for (int64_t t0 = part.first; t0 < part.end; t0 += step_rows) {
    write(left, Left(), slopes);
    write(right, Right(), inputs);
    __syncthreads();
    if (t0 + step_rows < part.end) read_both(t0 + step_rows);
#pragma unroll
    for (int t = 0; t < step_rows; t += 16) {
      uint32_t a[high][4], b[wide / 2][4];
#pragma unroll
      for (int i = 0; i < high; ++i)
        load_matrices_transposed(a[i], &left[(t + lane / 16 * 8 + lane % 8) * Left::stride + warp_n + 16 * i + lane / 8 % 2 * 8]);
#pragma unroll
      for (int j = 0; j < wide / 2; ++j) load_matrices_transposed(b[j], &right[(t + lane % 16) * Right::stride + warp_k + 16 * j + lane / 16 * 8]);
#pragma unroll
      for (int i = 0; i < high; ++i)
#pragma unroll
        for (int j = 0; j < wide; ++j) mma_bf16(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < high; ++i)
#pragma unroll
    for (int j = 0; j < wide; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int64_t n = n0 + warp_n + 16 * i + lane / 4 + e / 2 * 8, k = k0 + warp_k + 8 * j + lane % 4 * 2 + e % 2;
        if (n >= dw.rows || k >= dw.cols) continue;
        float& to = part.dw[n * dw.stride + k];
        to = (part.add ? to : 0) + sums[i][j][e];
      }
}

/// A thread a number.
__global__ void sum_parts(const float* from, int64_t apart, int parts, View to) {
  const int64_t i = int64_t(blockIdx.x) * 128 + threadIdx.x;
  if (i >= to.rows * to.cols) return;
  float& out = to.row(i / to.cols)[i % to.cols];
  out = with_parts(out, from + i, apart, parts);
}

/// Block y takes a part of the rows, and has sums of its own.
__global__ void column_sums(View dy, NarrowView narrow, int64_t rows, int64_t cols, float* out) {
  const int64_t n = int64_t(blockIdx.x) * 128 + threadIdx.x, first = rows * blockIdx.y / gridDim.y, end = rows * (blockIdx.y + 1) / gridDim.y;
  if (n >= cols) return;
  float sum = 0;
  for (int64_t t = first; t < end; ++t) sum += narrow.data ? file_word(narrow.row(t), Dtype::bf16, n) : dy.row(t)[n];
  out[blockIdx.y * cols + n] = sum;
}

}  // namespace

std::unique_ptr<Weight> pack(Context& context, const WeightSource& source, WeightFormat format) {
  Arguments args(context);
  int64_t rows = 0;
  for (const TensorView& part : source.parts) rows += part.shape[0];
  auto weight = make(args, rows, source.parts[0].shape[1], source.gated, format);
  fill(args, source, *weight);
  cuda::finish(context);
  return weight;
}

void repack(Context& context, const WeightSource& source, Weight& weight) {
  Arguments args(context);
  fill(args, source, static_cast<DeviceWeight&>(weight));
}

void pack_transposed(Context& context, const Weight& from, std::unique_ptr<Weight>& into) {
  Arguments args(context);
  const auto& weight = static_cast<const DeviceWeight&>(from);
  if (!into) into = make(args, weight.cols, weight.rows, false, weight.format);
  auto& turned = static_cast<DeviceWeight&>(*into);
  if (weight.format == WeightFormat::f32) {
    launch(args.device, turn_f32, dim3(blocks(turned.stride, 32), blocks(weight.cols, 32)), dim3(32, 8), static_cast<const float*>(weight.values),
           weight.rows, weight.cols, weight.stride, static_cast<float*>(turned.values), turned.stride);
    return;
  }
  if (weight.format != WeightFormat::i8) {
    launch(args.device, turn_words, dim3(blocks(turned.stride, words_turned), blocks(weight.cols, words_turned)), dim3(256),
           static_cast<const uint16_t*>(weight.values), weight.rows, weight.cols, weight.stride, static_cast<uint16_t*>(turned.values),
           turned.stride);
    return;
  }
  // Whole numbers have a scale for each output, and the outputs are others now.
  float* values = args.scratch<float>(weight.rows * weight.cols);
  launch(args.device, unpack_transposed, dim3(blocks(weight.cols, 128), unsigned(weight.rows)), dim3(128), static_cast<const void*>(weight.values),
         static_cast<const float*>(weight.scale), weight.rows, weight.cols, weight.stride, values);
  fill(args, {"transposed", {{values, Dtype::f32, {weight.cols, weight.rows}}}, false}, turned, true);
}

namespace {

/// Whether the results are turned, if they are to be.
bool linear(Arguments& args, const LinearArgs& a, const Rotation* rotation) {
  const auto& weight = static_cast<const DeviceWeight&>(*a.weight);
  const int64_t T = a.narrow_x.data ? a.narrow_x.rows : a.x.rows, N = weight.rows;
  // A residual that is y itself is read where it is written.
  const bool in_place = a.residual.data == a.y.data;
  const View y = in_place ? args.inout(a.y) : args.out(a.y);
  const View residual = in_place ? y : args.in(a.residual);
  const Epilogue epilogue{
      args.in(a.bias, N),    a.activation, weight.gated, residual, y, in_steps(y, 4) && in_steps(residual, 4) && in_steps(a.narrow_y, 4),
      args.inout(a.narrow_y)};
  if (weight.format == WeightFormat::bf16) {
    const NarrowView words = narrowed(args, a.narrow_x, a.x, weight.stride);
    if (args.device.warpgroups) return multiply_by_warpgroups(args, words, weight, epilogue, rotation);
    multiply_by_warps(args, words, weight, epilogue);
  } else if (weight.format == WeightFormat::i8) {
    multiply_whole(args, args.in(a.x), weight, epilogue);
  } else {
    // The larger tile reads less, where there are enough of it.
    const bool large = int64_t(blocks(N, 128)) * blocks(T, 128) >= args.device.multiprocessors, half = weight.format == WeightFormat::f16;
    const auto kernel = half ? large ? gemm_f32<true, 2> : gemm_f32<true, 1> : large ? gemm_f32<false, 2> : gemm_f32<false, 1>;
    const int64_t tile = large ? 128 : 64;
    launch(args.device, kernel, dim3(blocks(N, tile), blocks(T, tile)), dim3(256), args.in(a.x), static_cast<const void*>(weight.values), N,
           weight.stride, epilogue);
  }
  return false;
}

}  // namespace

void linear(Context& context, const LinearArgs& a) {
  Arguments args(context);
  linear(args, a, nullptr);
}

void linear_rope(Context& context, const LinearArgs& a, const RopeArgs& queries, const RopeArgs& keys) {
  {
    Arguments args(context);
    const RopeTables own = rope_tables(args, queries), tables = rope_tables(args, keys);
    bool fits = keys.cos && own.in_pairs() && tables.in_pairs();
    for (const RopeArgs* each : {&queries, &keys})
      fits &= each->heads == 0 || (each->head_dim == Rotation::head_dim && 2 * each->half == Rotation::head_dim && each->cos == keys.cos &&
                                   each->sin == keys.sin && each->positions == keys.positions);
    const Rotation rotation{
        {queries.heads, own.norm_weight, queries.eps}, {keys.heads, tables.norm_weight, keys.eps}, tables.cos, tables.sin, tables.positions};
    if (linear(args, a, fits ? &rotation : nullptr)) return;
  }
  if (queries.heads > 0) rope(context, queries);
  rope(context, keys);
}

void add_parts(Arguments& args, const float* from, int64_t apart, int parts, const View& to) {
  launch(args.device, sum_parts, dim3(blocks(to.rows * to.cols, 128)), dim3(128), from, apart, parts, to);
}

void linear_backward(Context& context, const LinearBackwardArgs& a) {
  Arguments args(context);
  const View dy = args.in(a.dy);
  const NarrowView narrow_dy = args.in(a.narrow_dy);
  const int64_t rows = narrow_dy.data ? narrow_dy.rows : dy.rows, cols = narrow_dy.data ? narrow_dy.cols : dy.cols;
  if (a.dbias && rows > 0) {
    const int parts = parts_of(rows);
    float* sums = args.scratch<float>(parts * cols);
    launch(args.device, column_sums, dim3(blocks(cols, 128), unsigned(parts)), dim3(128), dy, narrow_dy, rows, cols, sums);
    add_parts(args, sums, cols, parts, {args.inout(a.dbias, cols), 1, cols, cols});
  }
  if (!a.dw.data || rows == 0) return;
  const View x = args.in(a.x), dw = args.inout(a.dw);
  const NarrowView narrow_x = args.in(a.narrow_x);
  const int64_t tile_m = !a.reduced ? 64 : dw.rows <= 32 ? 32 : 128, tile_n = !a.reduced ? 64 : dw.cols <= 32 && dw.rows > 32 ? 32 : 128;
  const int64_t tiles = int64_t(blocks(dw.cols, tile_n)) * blocks(dw.rows, tile_m);
  // Blocks of few columns hardly multiply: more of them read at the same time.
  const int at_once = a.reduced && std::min(tile_m, tile_n) == 32 ? 6 : 2;
  const int parts = int(std::clamp<int64_t>(at_once * args.device.multiprocessors / tiles, 1, std::max<int64_t>(1, rows / 128)));
  const View results = parts == 1 ? dw : View{args.scratch<float>(parts * dw.rows * dw.cols), dw.rows, dw.cols, dw.cols};
  const dim3 grid(blocks(dw.cols, tile_n), blocks(dw.rows, tile_m), unsigned(parts));
  const auto multiply = [&](auto m, auto n) {
    const auto kernel = narrow_dy.data  ? narrow_x.data ? gemm_transposed_bf16<true, true, m, n> : gemm_transposed_bf16<true, false, m, n>
                         : narrow_x.data ? gemm_transposed_bf16<false, true, m, n>
                                        : gemm_transposed_bf16<false, false, m, n>;
    launch(args.device, kernel, grid, dim3(256), dy, narrow_dy, x, narrow_x, results);
  };
  using Many = std::integral_constant<int, 128>;
  using Few = std::integral_constant<int, 32>;
  if (!a.reduced) launch(args.device, gemm_transposed_f32, grid, dim3(256), dy, x, results);
  else if (tile_m == 32) multiply(Few(), Many());
  else if (tile_n == 32) multiply(Many(), Few());
  else multiply(Many(), Many());
  if (parts > 1) add_parts(args, results.data, dw.rows * dw.cols, parts, dw);
}

}  // namespace conan::cuda
