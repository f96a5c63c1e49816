// Products of whole warpgroups, bf16 and int8, for sm_90a. One warpgroup has the copy engine bring tiles of both sides, some steps of 128 bytes
// along K ahead; the others, 64 rows each, multiply them. Blocks stay and take one tile of results after the other, so that the next tile's
// first steps come while a tile is finished, and its results leave beside the next one's products; two blocks of a cluster, one above the other,
// share what they read of the weight. A sum runs over K in the same order whatever the tile, so that a result does not depend on the rows beside it.
#include "cuda/hopper.h"
#include "cuda/linear.h"

namespace conan::cuda {

namespace {

constexpr int part_columns = 64;  // of a tile's columns those that a warp finishes at a time

/// `consumers`: warpgroups that multiply.
template <int consumers_, int tile_n_, int stages_, int cluster_>
struct Size {
  static constexpr int consumers = consumers_, tile_m = 64 * consumers, tile_n = tile_n_, stages = stages_, cluster = cluster_;
  static constexpr int left_bytes = tile_m * 128, stage_bytes = left_bytes + tile_n * 128, threads = 128 * (consumers + 1);
  static constexpr int part = tile_n < part_columns ? tile_n : part_columns;
  static constexpr bool by_copies = tile_n >= 128;
  static constexpr int memory = stages * stage_bytes + consumers * 4 * 16 * part * int(sizeof(float));
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

/// How results leave a tile: by copies of boxes of 16 rows, which go on beside the next tile, and may be added to what is there; or by the
/// warps' own stores, where there are few or where they do not lie in steps of 16 bytes.
enum class Leave { by_stores, by_copies, by_sums };

#if CONAN_WARPGROUPS

/// What the epilogue makes of a warp's sums, 16 rows by a part's columns, where they are; of a gated weight's pairs the first is the result.
__device__ __forceinline__ void finish(const Epilogue& epilogue, float* v, int64_t t, int64_t T, int64_t n0, int64_t N) {
  const int lane = int(threadIdx.x) % 32;
  const int64_t first = n0 + lane % 4 * 2;  // of columns first + 8 j and + 1
  const int there = N - first < part_columns ? int(N - first) : part_columns;
  if (epilogue.row_scale) {
    const float own[2] = {t + lane / 4 < T ? epilogue.row_scale[t + lane / 4] : 0, t + lane / 4 + 8 < T ? epilogue.row_scale[t + lane / 4 + 8] : 0};
    const float* const scales = epilogue.column_scale + first;
#pragma unroll
    for (int j = 0; j < part_columns / 8; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float scale = 8 * j + e < there ? scales[8 * j + e] : 0;
        v[4 * j + e] *= own[0] * scale, v[4 * j + 2 + e] *= own[1] * scale;
      }
  }
  if (epilogue.bias) {
    const int step = epilogue.gated ? 4 : 8;
    const float* const biases[2] = {epilogue.bias + (epilogue.gated ? first / 2 : first),
                                    epilogue.bias + (epilogue.gated ? (first + N) / 2 : first + 1)};
#pragma unroll
    for (int j = 0; j < part_columns / 8; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float bias = 8 * j + e < there ? biases[e][step * j] : 0;
        v[4 * j + e] += bias, v[4 * j + 2 + e] += bias;
      }
  }
  if (!epilogue.gated && epilogue.activation == Activation::none) return;
  epilogue.with_function([&](auto function) {
    if (epilogue.gated) {
#pragma unroll
      for (int i = 0; i < part_columns / 2; i += 2) v[i] = function(v[i]) * v[i + 1];
      if (!epilogue.residual.data) return;
#pragma unroll
      for (int i = 0; i < part_columns / 2; i += 2) v[i] = rounded_to_bf16(v[i]);
    } else {
#pragma unroll
      for (int i = 0; i < part_columns / 2; ++i) v[i] = function(v[i]);
    }
  });
}

/// How a lane holds the results of a tile that wait to be sent: so many words of every part, of parts `first` to parts - 1. What is `added` to
/// a residual is bf16 until then. Of f32 otherwise only half find room; the others have gone before.
template <bool narrow_, bool gated_, bool added, int parts>
struct Kind {
  static constexpr bool narrow = narrow_, gated = gated_, pairs = (narrow || added) && !gated;
  static constexpr int words = part_columns / 2 / (narrow || added ? 2 : 1) / (gated ? 2 : 1), first = narrow || gated || added ? 0 : parts / 2;
};

/// A part's results, as they are sent.
template <class Kind>
__device__ __forceinline__ void take(uint32_t* words, const float* v) {
#pragma unroll
  for (int i = 0; i < Kind::words; ++i) {
    const int half = i % 2, j = i / 2;
    if constexpr (Kind::narrow && Kind::gated) words[i] = pack_bf16(v[8 * j + 2 * half], v[8 * j + 4 + 2 * half]);
    else if constexpr (Kind::pairs) words[i] = pack_bf16(v[4 * j + 2 * half], v[4 * j + 2 * half + 1]);
    else memcpy(&words[i], &v[Kind::gated ? 2 * i : i], 4);
  }
}

/// A part's results of a warp to where they belong, row t and packed column n0: through two boxes of shared memory in turn, of which a part
/// fills half (bf16 of a gated weight), one, or both (f32).
template <class Kind, int parts>
__device__ __forceinline__ void send(const uint32_t* words, unsigned char* boxes, const TileMap& y, int t, int n0, int part, bool add) {
  constexpr bool narrow = Kind::narrow, gated = Kind::gated, halves = narrow && gated;
  constexpr int filled = narrow || gated ? 1 : 2, each = part_columns / 8 / filled, box_bytes = 16 * 128, bytes = (narrow ? 2 : 4) * (gated ? 1 : 2);
  const int lane = int(threadIdx.x) % 32, row = lane / 4, half_box = halves ? part % 2 : 0;
  // Bytes of a row at which results belong; its 16-byte words are swizzled by its number.
  int own = lane % 4 * bytes ^ row * 16 ^ half_box * 64;
  not_ahead(own);
#pragma unroll
  for (int box = 0; box < filled; ++box) {
    unsigned char* const to = boxes + (filled == 2 ? box : halves ? part / 2 % 2 : part % 2) * box_bytes;
    if (half_box == 0) {
      if (lane == 0) wait_for_stores<(!halves || parts > 2)>();  // a tile's only box is the next one's too
      __syncwarp();
    }
#pragma unroll
    for (int j = 0; j < each; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        unsigned char* const place = to + (row + 8 * half) * 128 + (own ^ 4 * bytes * j);
        if constexpr (halves) *reinterpret_cast<uint16_t*>(place) = uint16_t(words[j / 2 * 2 + half] >> (j % 2 * 16));
        else if constexpr (filled == 1) *reinterpret_cast<uint32_t*>(place) = words[2 * j + half];
        else if constexpr (Kind::pairs) *reinterpret_cast<float2*>(place) = unpack_bf16(words[2 * (box * each + j) + half]);
        else *reinterpret_cast<uint2*>(place) = {words[4 * (box * each + j) + 2 * half], words[4 * (box * each + j) + 2 * half + 1]};
      }
    if (halves && half_box == 0) return;
    show_to_tensor_cores();
    __syncwarp();
    if (lane != 0) continue;
    store_box(y, to, halves ? n0 / 2 - 32 : gated ? n0 / 2 : n0 + box * 32, 0, t, add);
    commit_stores();
  }
}

#endif

/// `Sum`: of numbers' products, float of bf16, int of int8. y: results by boxes, where they leave by copies.
template <class Sum, class Tile>
__global__ void __launch_bounds__(Tile::threads, 1)
    gemm_wgmma(const CONAN_GRID_CONSTANT TileMap x, const CONAN_GRID_CONSTANT TileMap weight, const CONAN_GRID_CONSTANT TileMap y, Leave leave,
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
        }
      }
    }
  } else {
    if constexpr (Tile::consumers == 2) set_registers<232, true>();
    const int warp = id % 128 / 32, lane = id % 32;
    unsigned char* const own_memory = memory + Tile::stages * Tile::stage_bytes + (id / 32 - 4) * 16 * Tile::part * int(sizeof(float));
    const auto release = [&](int of) {
      if (id % 128 < Tile::cluster) Tile::cluster > 1 ? arrive_at(empty[of], id % 128) : arrive(empty[of]);
    };
    // Results of the tile before, which are sent beside the products of the next: of parts `next` on.
    constexpr int parts = Tile::tile_n / Tile::part;
    uint32_t held[Tile::tile_n / 4];
    const int pace = steps / (parts + 1);  // steps between parts, so that what takes them in need not take them at once
    int next = parts, due = 0, held_t = 0, held_n = 0;
    const auto by_kind = [&](auto use) {
      if (epilogue.narrow_y.data) epilogue.gated ? use(Kind<true, true, false, parts>()) : use(Kind<true, false, false, parts>());
      else if (epilogue.gated) use(Kind<false, true, false, parts>());
      else leave == Leave::by_sums ? use(Kind<false, false, true, parts>()) : use(Kind<false, false, false, parts>());
    };
    const auto send_held = [&](int count) {
      by_kind([&](auto kind) {
        using K = decltype(kind);
#pragma unroll
        for (int part = K::first; part < parts; ++part)
          if (part >= next && part < next + count)
            send<K, parts>(held + (part - K::first) * K::words, own_memory, y, held_t, held_n + part * part_columns, part, leave == Leave::by_sums);
      });
      next += count;
    };
    for (int tile = first; tile < all; tile += clusters) {
      Sum sums[Tile::tile_n / 2];
      const TilePlace place = place_of(tile, tiles_of_clusters, tiles_n);
      for (int step = 0; step < steps; ++step, advance()) {
        wait_for(full[stage], parity);
        const uint64_t left = tile_of(memory + stage * Tile::stage_bytes + (warpgroup - 1) * 64 * 128);
        const uint64_t right = tile_of(memory + stage * Tile::stage_bytes + Tile::left_bytes);
        begin_products();
#pragma unroll
        for (int k = 0; k < 4; ++k) multiply<Tile::tile_n>(sums, further(left, 32 * k), further(right, 32 * k), step > 0 || k > 0);
        commit_products();
        if (step > 0) {
          wait_for_products<1>();
          release(stage == 0 ? Tile::stages - 1 : stage - 1);
        }
        if constexpr (Tile::by_copies)
          if (next < parts && step >= due) send_held(pace == 0 ? parts : 1), due += pace;
      }
      wait_for_products<0>();
      settled(sums);
      release(stage == 0 ? Tile::stages - 1 : stage - 1);

      const int64_t t = int64_t(place.m * Tile::cluster + rank) * Tile::tile_m + (warpgroup - 1) * 64 + warp * 16,
                    n0 = int64_t(place.n) * Tile::tile_n;
      if constexpr (Tile::by_copies) {
        if (leave != Leave::by_stores) {
          held_t = int(t), held_n = int(n0);
#pragma unroll
          for (uint32_t& word : held) word = 0;  // nobody wants what was there
#pragma unroll
          for (int part = 0; part < parts; ++part) {
            float v[part_columns / 2];
#pragma unroll
            for (int i = 0; i < part_columns / 2; ++i) v[i] = float(sums[part * part_columns / 2 + i]);
            finish(epilogue, v, t, T, n0 + part * part_columns, N);
            by_kind([&](auto kind) {
              using K = decltype(kind);
              if (part >= K::first) return take<K>(held + (part - K::first) * K::words, v);
              uint32_t words[K::words];
              take<K>(words, v);
              send<K, parts>(words, own_memory, y, held_t, held_n + part * part_columns, part, leave == Leave::by_sums);
            });
          }
          by_kind([&](auto kind) { next = kind.first; });
          due = pace;
          continue;
        }
      }
      // By parts of so many columns; which sums they are must be known to the compiler, what becomes of them is written once.
#pragma unroll 1
      for (int c0 = 0; c0 < Tile::tile_n; c0 += Tile::part) {
        Sum v[Tile::part / 2];
#pragma unroll
        for (int part = 0; part < Tile::tile_n; part += Tile::part) {
          if (part != c0) continue;
#pragma unroll
          for (int i = 0; i < Tile::part / 2; ++i) v[i] = sums[part / 2 + i];
        }
        float* const staged = reinterpret_cast<float*>(own_memory);
        int row = lane / 4, column = lane % 4 * 2;
        not_ahead(row), not_ahead(column);
        __syncwarp();
#pragma unroll
        for (int j = 0; j < Tile::part / 8; ++j)
#pragma unroll
          for (int half = 0; half < 2; ++half)
            Epilogue::stage(staged + Epilogue::staged_at<Tile::part>(row + 8 * half, 8 * j + column), v[4 * j + 2 * half], v[4 * j + 2 * half + 1]);
        __syncwarp();
        if constexpr (Tile::by_copies) epilogue.by_fours<Tile::part>(staged, t, T, n0 + c0, N);
        else epilogue.rows_of<Tile::part>(staged, t, T, n0 + c0, N);
      }
    }
    if constexpr (Tile::by_copies) {
      if (next < parts) send_held(parts);
      wait_for_stores<0>();
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

/// Results as the copy engine takes them, if it does: it counts in 16 bytes.
template <class Tile>
std::pair<TileMap, Leave> results(Arguments& args, const Input& x, const DeviceWeight& weight, const Epilogue& epilogue) {
  const NarrowView& narrow = epilogue.narrow_y;
  const View &y = epilogue.y, &residual = epilogue.residual;
  if (!Tile::by_copies || !in_steps(y, 4) || !in_steps(narrow, 8)) return {TileMap{}, Leave::by_stores};
  if (residual.data && residual.data != y.data)
    check(cudaMemcpy2DAsync(y.data, size_t(y.stride) * sizeof(float), residual.data, size_t(residual.stride) * sizeof(float),
                            size_t(y.cols) * sizeof(float), size_t(y.rows), cudaMemcpyDefault, args.device.stream()),
          "copy");
  const int64_t outputs = weight.gated ? weight.rows / 2 : weight.rows;
  return {narrow.data ? tile_map(narrow.data, 2, outputs, 1, x.rows, narrow.stride, narrow.stride, 16)
                      : tile_map(y.data, 4, outputs, 1, x.rows, y.stride, y.stride, 16),
          residual.data ? Leave::by_sums : Leave::by_copies};
}

template <class Sum, class Tile>
void run(Arguments& args, const Input& x, const DeviceWeight& weight, const Epilogue& epilogue) {
  const unsigned tiles_m = blocks(x.rows, Tile::tile_m), tiles_n = blocks(weight.rows, Tile::tile_n);
  const unsigned all = blocks(tiles_m, Tile::cluster) * tiles_n * Tile::cluster,
                 most = unsigned(args.device.multiprocessors) / Tile::cluster * Tile::cluster;
  const int word = std::is_integral_v<Sum> ? 1 : 2;
  const auto [y, leave] = results<Tile>(args, x, weight, epilogue);
  launch_clusters(args.device, gemm_wgmma<Sum, Tile>, dim3(std::min(all, most)), dim3(Tile::threads), Tile::memory, Tile::cluster,
                  tile_map(x.data, word, weight.stride, 1, x.rows, weight.stride, x.stride, Tile::tile_m),
                  tile_map(weight.values, word, weight.stride, 1, weight.rows, weight.stride, weight.stride, Tile::tile_n / Tile::cluster), y, leave,
                  x.rows, weight.rows, int(blocks(weight.stride * word, 128)), int(tiles_m), int(tiles_n), epilogue);
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
                                            {cost<Least>(args, T, weight.rows, 0.2), run<Sum, Least>},  // of equals: more of them read the weight
                                            {cost<Small>(args, T, weight.rows, 0.4), run<Sum, Small>}};
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
