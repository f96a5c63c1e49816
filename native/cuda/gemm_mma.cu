// Products of warps on tensor cores (mma.sync, sm_80 and later), bf16 and int8. Rows of x become bf16, or whole numbers with a scale each,
// once; both sides then come past the registers, some steps of 128 bytes along K ahead of their use. A sum runs over K in the same order
// whatever the tile, so that a result does not depend on the rows beside it.
#include "cuda/linear.h"

namespace conan::cuda {

namespace {

/// Of a block and of its warps, and how many steps lie in shared memory.
struct LargeTile {                                                              // eight warps
  static constexpr int m = 128, n = 128, warp_m = 64, warp_n = 32, stages = 3;  // 96 KiB, of the 99 that sm_86 and sm_89 have
};
struct SmallTile {  // four, for few rows: more blocks read the weights, and each has more on its way
  static constexpr int m = 64, n = 32, warp_m = 32, warp_n = 16, stages = 6;
};
template <class Tile>
constexpr int threads_of = Tile::m / Tile::warp_m * (Tile::n / Tile::warp_n) * 32;

constexpr int step_bytes = 128;  // a row of a step in shared memory

struct Bf16 {
  using Sum = float;
  static __device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { mma_bf16(c, a, b0, b1); }
};
struct Int8 {
  using Sum = int;
  static __device__ __forceinline__ void multiply(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { mma_i8(c, a, b0, b1); }
};

/// A warp a row: x becomes whole numbers of -127 to 127 and a scale.
__global__ void quantise_rows(View x, int8_t* out, int64_t stride, float* scale) {
  const int64_t t = int64_t(blockIdx.x) * 8 + threadIdx.y;
  if (t >= x.rows) return;
  // Some at a time, so that they are waited for together.
  const auto each = [&](int64_t end, const auto& use) {
    for (int64_t first = threadIdx.x; first < end; first += 256) {
      float v[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] = first + 32 * i < x.cols ? x.row(t)[first + 32 * i] : 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) use(first + 32 * i, v[i]);
    }
  };
  float most = 0;
  each(x.cols, [&](int64_t, float v) { most = fmaxf(most, fabsf(v)); });
  most = warp_max(most);
  const float factor = most > 0 ? 127 / most : 0;
  if (threadIdx.x == 0) scale[t] = most / 127;
  each(stride, [&](int64_t k, float v) {
    if (k < stride) out[t * stride + k] = int8_t(nearbyintf(v * factor));
  });
}

/// `stride`: bytes of a row, on both sides.
template <class Number, class Tile>
__global__ void __launch_bounds__(threads_of<Tile>)
    gemm_mma(const char* x, int64_t T, const char* weight, int64_t N, int64_t stride, int tiles_m, int tiles_n, Epilogue epilogue) {
  constexpr int threads = threads_of<Tile>, across = Tile::n / Tile::warp_n, rows = Tile::warp_m / 16, columns = Tile::warp_n / 8;
  constexpr int stage_bytes = (Tile::m + Tile::n) * step_bytes;
  CONAN_LAUNCH_MEMORY(memory);
  const TilePlace place = place_of(int(blockIdx.x), tiles_m, tiles_n);
  const int64_t t0 = int64_t(place.m) * Tile::m, n0 = int64_t(place.n) * Tile::n;
  const int id = int(threadIdx.x), warp = id / 32, lane = id % 32;
  const int warp_m = warp / across * Tile::warp_m, warp_n = warp % across * Tile::warp_n;

  // Eight threads a row, 16 bytes each, which lie so that ldmatrix meets no bank twice.
  const auto swizzled = [](int row, int word) { return row * step_bytes + ((word ^ row % 8) << 4); };
  const auto copy = [&](int64_t step) {
    unsigned char* stage = memory + step % Tile::stages * stage_bytes;
    const int64_t k = step * step_bytes + id % 8 * 16;
#pragma unroll
    for (int r = id / 8; r < Tile::m; r += threads / 8) {
      const bool there = t0 + r < T && k < stride;
      copy_16(stage + swizzled(r, id % 8), x + (there ? (t0 + r) * stride + k : 0), there);
    }
#pragma unroll
    for (int r = id / 8; r < Tile::n; r += threads / 8) {
      const bool there = n0 + r < N && k < stride;
      copy_16(stage + Tile::m * step_bytes + swizzled(r, id % 8), weight + (there ? (n0 + r) * stride + k : 0), there);
    }
  };

  typename Number::Sum sums[rows][columns][4] = {};
  const int64_t steps = (stride + step_bytes - 1) / step_bytes;
  for (int64_t step = 0; step < Tile::stages - 1; ++step) {
    if (step < steps) copy(step);
    commit_copies();
  }
  for (int64_t step = 0; step < steps; ++step) {
    wait_for_copies<Tile::stages - 2>();
    __syncthreads();
    // Everybody is done with the step before: its place is free.
    if (step + Tile::stages - 1 < steps) copy(step + Tile::stages - 1);
    commit_copies();
    const unsigned char *left = memory + step % Tile::stages * stage_bytes, *right = left + Tile::m * step_bytes;
#pragma unroll
    for (int k = 0; k < step_bytes / 16; k += 2) {
      uint32_t a[rows][4], b[columns / 2][4];
#pragma unroll
      for (int i = 0; i < rows; ++i) load_matrices(a[i], left + swizzled(warp_m + 16 * i + lane % 16, k + lane / 16));
        // Columns 0..7 at both halves of k, then columns 8..15.
#pragma unroll
      for (int j = 0; j < columns / 2; ++j) load_matrices(b[j], right + swizzled(warp_n + 16 * j + lane / 16 * 8 + lane % 8, k + lane / 8 % 2));
#pragma unroll
      for (int i = 0; i < rows; ++i)
#pragma unroll
        for (int j = 0; j < columns; ++j) Number::multiply(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
  }
  // The steps' memory is free now; each warp has its part of it.
  __syncthreads();
  constexpr int width = Tile::warp_n;
  float* staged = reinterpret_cast<float*>(memory) + warp * 16 * width;
#pragma unroll
  for (int i = 0; i < rows; ++i) {
    const int64_t t = t0 + warp_m + 16 * i;
    __syncwarp();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = lane / 4 + 8 * half;
#pragma unroll
      for (int j = 0; j < columns; ++j) {
        const int c = 8 * j + lane % 4 * 2;
        Epilogue::stage(staged + Epilogue::staged_at<width>(r, c), sums[i][j][2 * half], sums[i][j][2 * half + 1]);
      }
    }
    __syncwarp();
    epilogue.rows_of<width>(staged, t, T, n0 + warp_n, N);
  }
}

template <class Number, class Tile>
void run(Arguments& args, const void* x, int64_t T, const DeviceWeight& weight, int64_t stride, const Epilogue& epilogue) {
  const unsigned tiles_m = blocks(T, Tile::m), tiles_n = blocks(weight.rows, Tile::n);
  launch_shared(args.device, gemm_mma<Number, Tile>, dim3(tiles_m * tiles_n), dim3(threads_of<Tile>), Tile::stages * (Tile::m + Tile::n) * step_bytes,
                static_cast<const char*>(x), T, static_cast<const char*>(weight.values), weight.rows, stride, int(tiles_m), int(tiles_n), epilogue);
}

bool is_large(const Arguments& args, int64_t T, const DeviceWeight& weight) {
  return int64_t(blocks(T, LargeTile::m)) * blocks(weight.rows, LargeTile::n) >= args.device.multiprocessors;
}

}  // namespace

void multiply_by_warps(Arguments& args, const NarrowView& x, const DeviceWeight& weight, const Epilogue& epilogue) {
  (is_large(args, x.rows, weight) ? run<Bf16, LargeTile> : run<Bf16, SmallTile>)(args, x.data, x.rows, weight, 2 * weight.stride, epilogue);
}

void multiply_whole(Arguments& args, const View& x, const DeviceWeight& weight, const Epilogue& epilogue) {
  int8_t* whole = args.scratch<int8_t>(x.rows * weight.stride);
  float* scale = args.scratch<float>(x.rows);
  launch(args.device, quantise_rows, dim3(blocks(x.rows, 8)), dim3(32, 8), x, whole, weight.stride, scale);
  Epilogue scaled = epilogue;
  scaled.row_scale = scale, scaled.column_scale = weight.scale;
  if (args.device.warpgroups) return multiply_by_warpgroups(args, whole, x.rows, weight, scaled);
  (is_large(args, x.rows, weight) ? run<Int8, LargeTile> : run<Int8, SmallTile>)(args, whole, x.rows, weight, weight.stride, scaled);
}

}  // namespace conan::cuda
