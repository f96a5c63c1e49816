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

/// What is known of the activation when a kernel is compiled.
enum class Function { none, silu, any };

/// How results leave a tile. By the warps' own stores, where they are few or do not lie in steps of 16 bytes:
struct Stores {
  static constexpr bool by_copies = false;
};
/// Or by copies of boxes of 16 rows, which go on beside the next tile: of bf16 (`narrow`), or of f32, which may be `added` to what is there; those
/// are bf16 until then. Heads that are `turned` (Rotation) are so while they wait. Until they are sent a lane holds so many words of every part.
template <bool narrow_, bool gated_, bool added_, Function function_, bool turned_ = false>
struct Copies {
  static constexpr bool by_copies = true, narrow = narrow_, gated = gated_, added = added_;
  [[maybe_unused]] static constexpr bool pairs = (narrow || added) && !gated;
  static constexpr bool turned = turned_;
  static constexpr Function function = function_;
  static constexpr int words = part_columns / 2 / (narrow || added ? 2 : 1) / (gated ? 2 : 1);
  /// Of so many parts the first that is held; of f32 only half find room, the others go before.
  static constexpr int first(int parts) { return narrow || gated || added ? 0 : parts / 2; }
};
template <Function function>
using NarrowRows = Copies<true, false, false, function>;
template <Function function>
using NarrowGated = Copies<true, true, false, function>;
template <Function function>
using WideRows = Copies<false, false, false, function>;
template <Function function>
using WideGated = Copies<false, true, false, function>;
using Added = Copies<false, false, true, Function::none>;
using TurnedRows = Copies<true, false, false, Function::none, true>;

#if CONAN_WARPGROUPS

/// The activation of a warp's sums, 16 rows by a part's columns, where they are; of a gated weight's pairs the first is the result.
template <class Way>
__device__ __forceinline__ void activate(const Epilogue& epilogue, float* v) {
  const auto apply = [&](auto function) {
#pragma unroll
    for (int i = 0; i < part_columns / 2; i += Way::gated ? 2 : 1) v[i] = Way::gated ? function(v[i]) * v[i + 1] : function(v[i]);
  };
  if constexpr (Way::function == Function::silu) apply(Epilogue::silu);
  else if constexpr (Way::function == Function::any) epilogue.with_function(apply);
}

/// What the epilogue makes of them before it.
template <class Way, class Sum>
__device__ __forceinline__ void prepare(const Epilogue& epilogue, float* v, int64_t t, int64_t T, int64_t n0, int64_t N) {
  const int lane = int(threadIdx.x) % 32;
  const int64_t first = n0 + lane % 4 * 2;  // of columns first + 8 j and + 1
  const int there = N - first < part_columns ? int(N - first) : part_columns;
  if constexpr (std::is_integral_v<Sum>) {
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
    constexpr int step = Way::gated ? 4 : 8;
    const float* const biases[2] = {epilogue.bias + (Way::gated ? first / 2 : first), epilogue.bias + (Way::gated ? (first + N) / 2 : first + 1)};
#pragma unroll
    for (int j = 0; j < part_columns / 8; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float bias = 8 * j + e < there ? biases[e][step * j] : 0;
        v[4 * j + e] += bias, v[4 * j + 2 + e] += bias;
      }
  }
}

/// A part's results, as they are sent.
template <class Way>
__device__ __forceinline__ void as_sent(uint32_t* words, const float* v) {
#pragma unroll
  for (int i = 0; i < Way::words; ++i) {
    const int half = i % 2, j = i / 2;
    if constexpr (Way::narrow && Way::gated) words[i] = pack_bf16(v[8 * j + 2 * half], v[8 * j + 4 + 2 * half]);
    else if constexpr (Way::pairs) words[i] = pack_bf16(v[4 * j + 2 * half], v[4 * j + 2 * half + 1]);
    else memcpy(&words[i], &v[Way::gated ? 2 * i : i], 4);
  }
}

/// A part's results of a warp to where they belong, row t and packed column n0: through two boxes of shared memory in turn, of which a part
/// fills half (bf16 of a gated weight), one, or both (f32).
template <class Way, int parts>
__device__ __forceinline__ void send(const uint32_t* words, unsigned char* boxes, const TileMap& y, int t, int n0, int part) {
  constexpr bool narrow = Way::narrow, gated = Way::gated, halves = narrow && gated;
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
        else if constexpr (Way::pairs) *reinterpret_cast<float2*>(place) = unpack_bf16(words[2 * (box * each + j) + half]);
        else *reinterpret_cast<uint2*>(place) = {words[4 * (box * each + j) + 2 * half], words[4 * (box * each + j) + 2 * half + 1]};
      }
    if (halves && half_box == 0) return;
    show_to_tensor_cores();
    __syncwarp();
    if (lane != 0) continue;
    store_box(y, to, halves ? n0 / 2 - 32 : gated ? n0 / 2 : n0 + box * 32, 0, t, Way::added);
    commit_stores();
  }
}

/// Results of a warp's rows of a tile, from row t and packed column n0 on, which are sent beside the products of the next, a step at a time. A
/// step keeps waiting for its warpgroup all that share the stages: more of them, or those of two warpgroups apart in time, were seen to take
/// longer.
template <class Way, int parts>
struct Held {
  // A head is two parts.
  static constexpr int first = Way::first(parts), heads = Way::turned ? parts / 2 : 0, groups = 4, turns = Way::turned ? heads + 2 * groups : 0,
                       steps = turns + parts;
  uint32_t words[(parts - first) * Way::words];
  float factor[Way::turned ? 2 * heads : 1];
  int next = steps, t, n0;

  __device__ __forceinline__ bool any() const { return next < steps; }
  __device__ __forceinline__ uint32_t* of(int part) { return words + (part - first) * Way::words; }
  /// A tile's sums: those of parts before the first that is held are sent at once.
  template <class Sum, int count>
  __device__ __forceinline__ void take(const Sum (&sums)[count], int tile_t, int tile_n0, const Epilogue& epilogue, int64_t T, int64_t N,
                                       unsigned char* boxes, const TileMap& y) {
    t = tile_t, n0 = tile_n0, next = first;
#pragma unroll
    for (int part = 0; part < parts; ++part) {
      float v[part_columns / 2];
#pragma unroll
      for (int i = 0; i < part_columns / 2; ++i) v[i] = float(sums[part * part_columns / 2 + i]);
      prepare<Way, Sum>(epilogue, v, t, T, n0 + part * part_columns, N);
      activate<Way>(epilogue, v);
      if (part >= first) {
        as_sent<Way>(of(part), v);
      } else {
        uint32_t at_once[Way::words];
        as_sent<Way>(at_once, v);
        send<Way, parts>(at_once, boxes, y, t, n0 + part * part_columns, part);
      }
    }
  }
  /// `rows`: of all results.
  __device__ __forceinline__ void step(unsigned char* boxes, const TileMap& y, const Rotation& rotation, int64_t rows) {
    if constexpr (Way::turned) {
#pragma unroll
      for (int h = 0; h < heads; ++h)
        if (next == h) find_factors(h, rotation);
#pragma unroll
      for (int i = 0; i < 2 * groups; ++i)
        if (next == heads + i) turn(i % 2, i / 2, rotation, rows);
    }
#pragma unroll
    for (int part = first; part < parts; ++part)
      if (next == turns + part) send<Way, parts>(of(part), boxes, y, t, n0 + part * part_columns, part);
    ++next;
  }

 private:
  /// Which of all heads the tile's head h is.
  __device__ __forceinline__ int head_of(int h) const { return n0 / Rotation::head_dim + h; }
  __device__ __forceinline__ float2 pair(int h, int high, int j, int half) { return unpack_bf16(of(2 * h + high)[2 * j + half]); }

  /// One over the length of head h, where it is normed; added up in the order of rope, whose lanes have neighbouring pairs of a row.
  __device__ __forceinline__ void find_factors(int h, const Rotation& rotation) {
    constexpr int count = part_columns / 8;
    const Rotation::Side side = rotation.side_of(head_of(h));
    if (!side.norm_weight) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float squares[count];
#pragma unroll
      for (int j = 0; j < count; ++j) squares[j] = squares_of(pair(h, 0, j, half), pair(h, 1, j, half));
#pragma unroll
      for (int apart = count / 2; apart > 0; apart /= 2)
#pragma unroll
        for (int j = 0; j < apart; ++j) squares[j] += squares[j + apart];
      float sum = squares[0];
      for (int mask = 2; mask; mask >>= 1) sum += __shfl_xor_sync(full_warp, sum, mask);
      factor[2 * h + half] = 1 / sqrtf(sum / float(Rotation::head_dim) + side.eps);
    }
  }
  /// Turns a group of this lane's pairs, of one of its rows.
  __device__ __forceinline__ void turn(int half, int group, const Rotation& rotation, int64_t rows) {
    constexpr int count = part_columns / 8 / groups;
    int lane = int(threadIdx.x) % 32;
    not_ahead(lane);
    const int column = 8 * count * group + lane % 4 * 2;
    const int64_t row = t + lane / 4 + 8 * half, at = int64_t(rotation.positions[row < rows ? row : rows - 1]) * part_columns + column;
    float2 cos[count], sin[count];
#pragma unroll
    for (int i = 0; i < count; ++i) {
      cos[i] = *reinterpret_cast<const float2*>(rotation.cos + at + 8 * i);
      sin[i] = *reinterpret_cast<const float2*>(rotation.sin + at + 8 * i);
    }
#pragma unroll
    for (int h = 0; h < heads; ++h) {
      if (!rotation.turns(head_of(h))) continue;
      const float* const weight = rotation.side_of(head_of(h)).norm_weight;
#pragma unroll
      for (int i = 0; i < count; ++i) {
        const int j = count * group + i;
        const auto behind_norm = [&](int high) {
          return normed(pair(h, high, j, half), factor[2 * h + half], weight ? weight + column + 8 * i + high * part_columns : nullptr);
        };
        const Turned out(behind_norm(0), behind_norm(1), cos[i], sin[i]);
        of(2 * h)[2 * j + half] = pack_bf16(out.low.x, out.low.y), of(2 * h + 1)[2 * j + half] = pack_bf16(out.high.x, out.high.y);
      }
    }
  }
};
template <int parts>
struct Held<Stores, parts> {
  static constexpr int steps = 0;
};

#endif

/// `Sum`: of numbers' products, float of bf16, int of int8. y: results by boxes, where they leave by copies.
template <class Sum, class Tile, class Way>
__global__ void __launch_bounds__(Tile::threads, 1)
    gemm_wgmma(const CONAN_GRID_CONSTANT TileMap x, const CONAN_GRID_CONSTANT TileMap weight, const CONAN_GRID_CONSTANT TileMap y, int64_t T,
               int64_t N, int steps, int tiles_m, int tiles_n, Epilogue epilogue, Rotation rotation) {
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
    Held<Way, Tile::tile_n / Tile::part> held;
    const int pace = steps / (held.steps + 1);  // products between its steps, so that what takes results in need not take them at once
    int due = 0;
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
        if constexpr (Way::by_copies)
          if (held.any() && step >= due) {
            do held.step(own_memory, y, rotation, T);
            while (pace == 0 && held.any());
            due += pace;
          }
      }
      wait_for_products<0>();
      settled(sums);
      release(stage == 0 ? Tile::stages - 1 : stage - 1);

      const int64_t t = int64_t(place.m * Tile::cluster + rank) * Tile::tile_m + (warpgroup - 1) * 64 + warp * 16,
                    n0 = int64_t(place.n) * Tile::tile_n;
      if constexpr (Way::by_copies) {
        held.take(sums, int(t), int(n0), epilogue, T, N, own_memory, y);
        due = pace;
      } else {
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
    }
    if constexpr (Way::by_copies) {
      while (held.any()) held.step(own_memory, y, rotation, T);
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

template <class Sum, class Tile, class Way>
void run(Arguments& args, const Input& x, const DeviceWeight& weight, const Epilogue& epilogue, const TileMap& y, const Rotation& rotation = {}) {
  const unsigned tiles_m = blocks(x.rows, Tile::tile_m), tiles_n = blocks(weight.rows, Tile::tile_n);
  const unsigned all = blocks(tiles_m, Tile::cluster) * tiles_n * Tile::cluster,
                 most = unsigned(args.device.multiprocessors) / Tile::cluster * Tile::cluster;
  const int word = std::is_integral_v<Sum> ? 1 : 2;
  launch_clusters(args.device, gemm_wgmma<Sum, Tile, Way>, dim3(std::min(all, most)), dim3(Tile::threads), Tile::memory, Tile::cluster,
                  tile_map(x.data, word, weight.stride, 1, x.rows, weight.stride, x.stride, Tile::tile_m),
                  tile_map(weight.values, word, weight.stride, 1, weight.rows, weight.stride, weight.stride, Tile::tile_n / Tile::cluster), y, x.rows,
                  weight.rows, int(blocks(weight.stride * word, 128)), int(tiles_m), int(tiles_n), epilogue, rotation);
}

/// The same by the way in which the results can leave: the copy engine counts in 16 bytes. What is both added and an activation's, which no
/// model asks for, takes the general one. Whether the results are turned.
template <class Sum, class Tile>
bool run_any(Arguments& args, const Input& x, const DeviceWeight& weight, const Epilogue& epilogue, const Rotation* rotation) {
  if constexpr (Tile::by_copies) {
    const NarrowView& narrow = epilogue.narrow_y;
    const View &wide = epilogue.y, &residual = epilogue.residual;
    const bool plain = !weight.gated && epilogue.activation == Activation::none;
    if (in_steps(wide, 4) && in_steps(narrow, 8) && (!residual.data || plain)) {
      if (residual.data && residual.data != wide.data)
        check(cudaMemcpy2DAsync(wide.data, size_t(wide.stride) * sizeof(float), residual.data, size_t(residual.stride) * sizeof(float),
                                size_t(wide.cols) * sizeof(float), size_t(wide.rows), cudaMemcpyDefault, args.device.stream()),
              "copy");
      const int64_t outputs = weight.gated ? weight.rows / 2 : weight.rows;
      const TileMap y = narrow.data ? tile_map(narrow.data, 2, outputs, 1, x.rows, narrow.stride, narrow.stride, 16)
                                    : tile_map(wide.data, 4, outputs, 1, x.rows, wide.stride, wide.stride, 16);
      const auto by = [&](auto way) { return run<Sum, Tile, decltype(way)>(args, x, weight, epilogue, y), false; };
      if (residual.data) return by(Added());
      const bool silu = epilogue.activation == Activation::silu;
      if constexpr (!std::is_integral_v<Sum>) {
        if (rotation && narrow.data && plain) return run<Sum, Tile, TurnedRows>(args, x, weight, epilogue, y, *rotation), true;
        if (narrow.data && weight.gated) return silu ? by(NarrowGated<Function::silu>()) : by(NarrowGated<Function::any>());
        if (narrow.data) return plain ? by(NarrowRows<Function::none>()) : by(NarrowRows<Function::any>());
      }
      if (weight.gated) return silu ? by(WideGated<Function::silu>()) : by(WideGated<Function::any>());
      return plain ? by(WideRows<Function::none>()) : by(WideRows<Function::any>());
    }
  }
  run<Sum, Tile, Stores>(args, x, weight, epilogue, {});
  return false;
}

/// Time of a product, in no unit: rounds of tiles by a tile's elements over the rate at which tiles of the size are multiplied.
template <class Tile>
double cost(const Arguments& args, int64_t T, int64_t N, double rate) {
  const int64_t tiles = int64_t(blocks(blocks(T, Tile::tile_m), Tile::cluster)) * blocks(N, Tile::tile_n),
                at_once = args.device.multiprocessors / Tile::cluster;
  return double((tiles + at_once - 1) / at_once) * Tile::tile_m * Tile::tile_n / rate;
}

template <class Sum>
bool run_best(Arguments& args, const Input& x, const DeviceWeight& weight, const Epilogue& epilogue, const Rotation* rotation) {
  const int64_t T = x.rows;
  if (T == 0) return false;
  using Run = bool (*)(Arguments&, const Input&, const DeviceWeight&, const Epilogue&, const Rotation*);
  const std::pair<double, Run> choices[] = {{cost<Large>(args, T, weight.rows, 1), run_any<Sum, Large>},
                                            {cost<Medium>(args, T, weight.rows, 0.8), run_any<Sum, Medium>},
                                            {cost<Least>(args, T, weight.rows, 0.2), run_any<Sum, Least>},  // of equals: more of them read the weight
                                            {cost<Small>(args, T, weight.rows, 0.4), run_any<Sum, Small>}};
  const auto best = std::min_element(std::begin(choices), std::end(choices), [](const auto& a, const auto& b) { return a.first < b.first; });
  return best->second(args, x, weight, epilogue, rotation);
}

}  // namespace

bool multiply_by_warpgroups(Arguments& args, const NarrowView& x, const DeviceWeight& weight, const Epilogue& epilogue, const Rotation* rotation) {
  return run_best<float>(args, {x.data, x.rows, x.stride}, weight, epilogue, rotation);
}

void multiply_by_warpgroups(Arguments& args, const int8_t* x, int64_t T, const DeviceWeight& weight, const Epilogue& epilogue) {
  run_best<int>(args, {x, T, weight.stride}, weight, epilogue, nullptr);
}

}  // namespace conan::cuda
