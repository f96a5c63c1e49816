// Products of whole warpgroups, bf16 and int8, for sm_90a. One warpgroup has the copy engine bring tiles of both sides, some steps of 128 bytes
// along K ahead; the others, 64 rows each, multiply them. Blocks stay and take one tile of results after the other, so that the next tile's
// first steps come while a tile is finished; two blocks of a cluster, one above the other, share what they read of the weight. A sum runs
// over K in the same order whatever the tile, so that a result does not depend on the rows beside it.
#include "cuda/hopper.h"
#include "cuda/linear.h"

namespace conan::cuda {

namespace {

/// `consumers`: warpgroups that multiply.
template <int consumers_, int tile_n_, int stages_, int cluster_>
struct Size {
  static constexpr int consumers = consumers_, tile_m = 64 * consumers, tile_n = tile_n_, stages = stages_, cluster = cluster_;
  static constexpr int left_bytes = tile_m * 128, stage_bytes = left_bytes + tile_n * 128, threads = 128 * (consumers + 1);
  static constexpr int staged = tile_n < 64 ? tile_n : 64;  // columns that a warp finishes at a time
  static constexpr int memory = stages * stage_bytes + consumers * 4 * 16 * staged * int(sizeof(float));
};
#ifdef __CUDACC__
constexpr int pair_of_blocks = 2;
#else
constexpr int pair_of_blocks = 1;  // blocks run one after the other
#endif
using Large = Size<2, 256, 4, pair_of_blocks>;
using Medium = Size<2, 128, 5, 1>;
using Small = Size<1, 64, 6, 1>;
using Least = Size<1, 32, 8, 1>;

/// `Sum`: of numbers' products, float of bf16, int of int8.
template <class Sum, class Tile>
__global__ void __launch_bounds__(Tile::threads, 1) gemm_wgmma(const CONAN_GRID_CONSTANT TileMap x, const CONAN_GRID_CONSTANT TileMap weight,
                                                               int64_t T, int64_t N, int steps, int tiles_m, int tiles_n, Epilogue epilogue) {
#if CONAN_WARPGROUPS
  constexpr int step_columns = std::is_integral_v<Sum> ? 128 : 64;
  CONAN_LAUNCH_MEMORY(memory);
  __shared__ Barrier full[Tile::stages], empty[Tile::stages];
  const int id = int(threadIdx.x), warpgroup = id / 128, rank = Tile::cluster > 1 ? rank_in_cluster() : 0;
  if (id == 0) {
    for (int s = 0; s < Tile::stages; ++s) begin(full[s], 1), begin(empty[s], Tile::consumers * Tile::cluster);
    show_barriers();
  }
  Tile::cluster > 1 ? sync_cluster() : __syncthreads();

  const int tiles_of_clusters = (tiles_m + Tile::cluster - 1) / Tile::cluster, all = tiles_of_clusters * tiles_n;
  const int first = int(blockIdx.x) / Tile::cluster, clusters = int(gridDim.x) / Tile::cluster;
  int stage = 0, parity = 0;
  const auto advance = [&] {
    if (++stage == Tile::stages) stage = 0, parity ^= 1;
  };
  if (warpgroup == 0) {
    if constexpr (Tile::consumers == 2) set_registers<40, false>();
    if (id == 0) {
      for (int tile = first; tile < all; tile += clusters) {
        const TilePlace place = place_of(tile, tiles_of_clusters, tiles_n);
        const int t0 = (place.m * Tile::cluster + rank) * Tile::tile_m, n0 = place.n * Tile::tile_n;
        for (int step = 0; step < steps; ++step, advance()) {
          unsigned char *left = memory + stage * Tile::stage_bytes, *right = left + Tile::left_bytes;
          wait_for(empty[stage], parity ^ 1);
          arrive_expecting(full[stage], Tile::stage_bytes);
          load_box(left, x, step * step_columns, 0, t0, full[stage]);
          if constexpr (Tile::cluster == 1) {
            load_box(right, weight, step * step_columns, 0, n0, full[stage]);
          } else {
            constexpr int part = Tile::tile_n / Tile::cluster;
            load_box_everywhere(right + rank * part * 128, weight, step * step_columns, 0, n0 + rank * part, full[stage], Tile::cluster);
          }
          // What the sums will be added to comes nearer meanwhile, some rows a step.
          if (!epilogue.residual.data || !epilogue.by_four || n0 + Tile::tile_n > N) continue;
          for (int r = Tile::tile_m * step / steps; r < Tile::tile_m * (step + 1) / steps && t0 + r < T; ++r)
            prefetch(epilogue.residual.row(t0 + r) + n0, Tile::tile_n * int(sizeof(float)));
        }
      }
    }
  } else {
    if constexpr (Tile::consumers == 2) set_registers<232, true>();
    const int warp = id % 128 / 32, lane = id % 32;
    float* staged = reinterpret_cast<float*>(memory + Tile::stages * Tile::stage_bytes) + (id / 32 - 4) * 16 * Tile::staged;
    const auto release = [&](int of) {
      if (id % 128 < Tile::cluster) Tile::cluster > 1 ? arrive_at(empty[of], id % 128) : arrive(empty[of]);
    };
    Sum sums[Tile::tile_n / 2];
    for (int tile = first; tile < all; tile += clusters) {
      const TilePlace place = place_of(tile, tiles_of_clusters, tiles_n);
      for (int step = 0; step < steps; ++step, advance()) {
        wait_for(full[stage], parity);
        const uint64_t left = tile_of(memory + stage * Tile::stage_bytes + (warpgroup - 1) * 64 * 128);
        const uint64_t right = tile_of(memory + stage * Tile::stage_bytes + Tile::left_bytes);
        begin_products();
#pragma unroll
        for (int k = 0; k < 4; ++k) multiply<Tile::tile_n>(sums, further(left, 32 * k), further(right, 32 * k), step > 0 || k > 0);
        commit_products();
        if (step == 0) continue;
        wait_for_products<1>();
        release(stage == 0 ? Tile::stages - 1 : stage - 1);
      }
      wait_for_products<0>();
      settled(sums);
      release(stage == 0 ? Tile::stages - 1 : stage - 1);

      const int64_t t = int64_t(place.m * Tile::cluster + rank) * Tile::tile_m + (warpgroup - 1) * 64 + warp * 16,
                    n0 = int64_t(place.n) * Tile::tile_n;
      // By parts of so many columns; which sums they are must be known to the compiler, what becomes of them is written once.
#pragma unroll 1
      for (int c0 = 0; c0 < Tile::tile_n; c0 += Tile::staged) {
        __syncwarp();
#pragma unroll
        for (int part = 0; part < Tile::tile_n; part += Tile::staged) {
          if (part != c0) continue;
#pragma unroll
          for (int j = 0; j < Tile::staged / 8; ++j)
#pragma unroll
            for (int half = 0; half < 2; ++half)
              Epilogue::stage(staged + Epilogue::staged_at<Tile::staged>(lane / 4 + 8 * half, 8 * j + lane % 4 * 2),
                              sums[part / 2 + 4 * j + 2 * half], sums[part / 2 + 4 * j + 2 * half + 1]);
        }
        __syncwarp();
        epilogue.rows_of<Tile::staged>(staged, t, T, n0 + c0, N);
      }
    }
  }
  if constexpr (Tile::cluster > 1) sync_cluster();  // nobody leaves whom others still write to
#endif
}

/// Rows of bf16 or of int8.
struct Input {
  const void* data;
  int64_t rows, stride;
};

template <class Sum, class Tile>
void run(Arguments& args, const Input& x, const DeviceWeight& weight, const Epilogue& epilogue) {
  const unsigned tiles_m = blocks(x.rows, Tile::tile_m), tiles_n = blocks(weight.rows, Tile::tile_n);
  const unsigned all = blocks(tiles_m, Tile::cluster) * tiles_n * Tile::cluster,
                 most = unsigned(args.device.multiprocessors) / Tile::cluster * Tile::cluster;
  const int word = std::is_integral_v<Sum> ? 1 : 2;
  launch_clusters(args.device, gemm_wgmma<Sum, Tile>, dim3(std::min(all, most)), dim3(Tile::threads), Tile::memory, Tile::cluster,
                  tile_map(x.data, word, weight.stride, 1, x.rows, weight.stride, x.stride, Tile::tile_m),
                  tile_map(weight.values, word, weight.stride, 1, weight.rows, weight.stride, weight.stride, Tile::tile_n / Tile::cluster), x.rows,
                  weight.rows, int(blocks(weight.stride * word, 128)), int(tiles_m), int(tiles_n), epilogue);
}

/// Time of a product, in no unit: rounds of tiles by a tile's elements over the rate at which tiles of the size are multiplied.
template <class Tile>
double cost(const Arguments& args, int64_t T, int64_t N, double rate) {
  const int64_t tiles = int64_t(blocks(blocks(T, Tile::tile_m), Tile::cluster)) * blocks(N, Tile::tile_n),
                at_once = args.device.multiprocessors / Tile::cluster;
  return double((tiles + at_once - 1) / at_once) * Tile::tile_m * Tile::tile_n / rate;
}

template <class Sum>
void run_best(Arguments& args, const Input& x, const DeviceWeight& weight, const Epilogue& epilogue) {
  const int64_t T = x.rows;
  if (T == 0) return;
  using Run = void (*)(Arguments&, const Input&, const DeviceWeight&, const Epilogue&);
  const std::pair<double, Run> choices[] = {{cost<Large>(args, T, weight.rows, 1), run<Sum, Large>},
                                            {cost<Medium>(args, T, weight.rows, 0.8), run<Sum, Medium>},
                                            {cost<Small>(args, T, weight.rows, 0.4), run<Sum, Small>},
                                            {cost<Least>(args, T, weight.rows, 0.2), run<Sum, Least>}};
  const auto best = std::min_element(std::begin(choices), std::end(choices), [](const auto& a, const auto& b) { return a.first < b.first; });
  best->second(args, x, weight, epilogue);
}

}  // namespace

void multiply_by_warpgroups(Arguments& args, const NarrowView& x, const DeviceWeight& weight, const Epilogue& epilogue) {
  run_best<float>(args, {x.data, x.rows, x.stride}, weight, epilogue);
}

void multiply_by_warpgroups(Arguments& args, const int8_t* x, int64_t T, const DeviceWeight& weight, const Epilogue& epilogue) {
  run_best<int>(args, {x, T, weight.stride}, weight, epilogue);
}

}  // namespace conan::cuda
