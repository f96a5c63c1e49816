// bf16 products of whole warpgroups, for sm_90a. A block takes 128 rows by 128 or 256 columns, in steps of 64 along K, of which four lie in
// shared memory: one is multiplied, one may still be read, two are on their way. Two warpgroups, 64 rows each, and all their threads copy.
// The instruction and the order of its steps are the same for every size, so that a result does not depend on the rows beside it.
#include "cuda/linear.h"
#include "cuda/wgmma.h"

namespace conan::cuda {

namespace {

constexpr int tile_m = 128, tile_k = 64, stages = 4;

/// `parts`: of 128 columns each, in a tile.
template <int parts>
__global__ void __launch_bounds__(256, 1)
    gemm_wgmma(const uint16_t* x, int64_t T, const uint16_t* weight, int64_t N, int64_t stride, int tiles_m, int tiles_n, Epilogue epilogue) {
#if CONAN_WARPGROUPS
  constexpr int tile_n = 128 * parts, left_bytes = tile_m * 128, stage_bytes = left_bytes + tile_n * 128;
  CONAN_LAUNCH_MEMORY(memory);
  const TilePlace place = own_tile(tiles_m, tiles_n);
  const int64_t t0 = int64_t(place.m) * tile_m, n0 = int64_t(place.n) * tile_n;
  const int id = int(threadIdx.x), warpgroup = id / 128;

  // Eight threads a row of 128 bytes.
  const auto copy = [&](int64_t step) {
    unsigned char* stage = memory + step % stages * stage_bytes;
    const int64_t k = step * tile_k + id % 8 * 8;
#pragma unroll
    for (int i = 0; i < tile_m / 32; ++i) {
      const int r = id / 8 + 32 * i;
      const bool there = t0 + r < T;
      copy_16(stage + swizzled(r, id % 8), x + (there ? t0 + r : 0) * stride + k, there);
    }
#pragma unroll
    for (int i = 0; i < tile_n / 32; ++i) {
      const int r = id / 8 + 32 * i;
      const bool there = n0 + r < N;
      copy_16(stage + left_bytes + swizzled(r, id % 8), weight + (there ? n0 + r : 0) * stride + k, there);
    }
  };

  float sums[parts][64];
#pragma unroll
  for (int p = 0; p < parts; ++p)
#pragma unroll
    for (int i = 0; i < 64; ++i) sums[p][i] = 0;
  const int64_t steps = stride / tile_k;
  for (int64_t step = 0; step < stages - 2; ++step) {
    if (step < steps) copy(step);
    commit_copies();
  }
  for (int64_t step = 0; step < steps; ++step) {
    wait_for_copies<stages - 3>();
    show_to_tensor_cores();
    __syncthreads();
    // Everybody has waited for the products of the step before the last: its place is free.
    if (step + stages - 2 < steps) copy(step + stages - 2);
    commit_copies();
    const unsigned char* stage = memory + step % stages * stage_bytes;
    const uint64_t left = tile_of(stage + warpgroup * 64 * 128), right = tile_of(stage + left_bytes);
    begin_products();
#pragma unroll
    for (int k = 0; k < tile_k / 16; ++k)
#pragma unroll
      for (int p = 0; p < parts; ++p)
        multiply(sums[p], next_columns(left, k), next_columns(p == 0 ? right : tile_of(stage + left_bytes + 128 * 128), k));
    commit_products();
    wait_for_products<1>();
  }
  wait_for_products<0>();

  const int warp = id % 128 / 32, lane = id % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t t = t0 + warpgroup * 64 + warp * 16 + lane / 4 + 8 * half;
    if (t >= T) continue;
#pragma unroll
    for (int p = 0; p < parts; ++p)
#pragma unroll
      for (int j = 0; j < 16; ++j) epilogue.pair(t, n0 + 128 * p + 8 * j + lane % 4 * 2, sums[p][4 * j + 2 * half], sums[p][4 * j + 2 * half + 1], N);
  }
#endif
}

template <int parts>
void run(Arguments& args, const uint16_t* x, int64_t T, const DeviceWeight& weight, const Epilogue& epilogue) {
  const unsigned tiles_m = blocks(T, tile_m), tiles_n = blocks(weight.rows, 128 * parts);
  launch_shared(args.device, gemm_wgmma<parts>, dim3(tiles_m * tiles_n), dim3(256), stages * (tile_m + 128 * parts) * 128, x, T,
                static_cast<const uint16_t*>(weight.values), weight.rows, weight.stride, int(tiles_m), int(tiles_n), epilogue);
}

}  // namespace

void multiply_by_warpgroups(Arguments& args, const uint16_t* x, int64_t T, const DeviceWeight& weight, const Epilogue& epilogue) {
  // The larger tile asks less of shared memory; the smaller keeps more multiprocessors busy.
  const bool large = int64_t(blocks(T, tile_m)) * blocks(weight.rows, 256) >= args.device.multiprocessors;
  if (large) run<2>(args, x, T, weight, epilogue);
  else run<1>(args, x, T, weight, epilogue);
}

}  // namespace conan::cuda
