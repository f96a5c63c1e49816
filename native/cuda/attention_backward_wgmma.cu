// Gradients of attention by whole warpgroups, for sm_90a. Scores are computed again: of a short sequence in one kernel, which has all of it; of
// others in one for the gradient by the queries and in one for those by keys and values, so that every sum has one place and one order. Which
// of them a sequence gets depends on its own length alone. The copy engine brings the tiles that are looked at, two matrices at a time;
// warpgroups have 64 rows each. Rows behind a sequence's end are multiplied by zero, as in attention_wgmma.cu.
#include "cuda/attention_tiles.h"

namespace conan::cuda {

namespace {

/// What a query's probabilities are computed from, and the mean of its gradients by them: p = 2^(score * factor - base).
struct Row {
  float base, mean;
};

constexpr int tile_rows = 64, stages = 2;

/// Whether a sequence is short: one tile each.
__host__ __device__ __forceinline__ bool is_short(const int32_t* q_offsets, const int32_t* kv_offsets, int b) {
  return q_offsets[b + 1] - q_offsets[b] <= tile_rows && kv_offsets[b + 1] - kv_offsets[b] <= tile_rows;
}

/// Of a block for heads of up to D channels.
template <int D_>
struct Size {
  static constexpr int D = D_, consumers = 2, own_rows = 64 * consumers, threads = 128 * (consumers + 1);
  static constexpr int own_bytes = own_rows * D * 2, tile_bytes = tile_rows * D * 2, memory = 2 * own_bytes + 2 * stages * tile_bytes;
};

#if CONAN_WARPGROUPS

/// The block's own two matrices, and stages of two others.
template <class Size>
struct Tiles {
  unsigned char* memory;
  __device__ unsigned char* own(int which) const { return memory + which * Size::own_bytes; }
  __device__ unsigned char* at(int stage, int which) const { return memory + 2 * Size::own_bytes + (2 * stage + which) * Size::tile_bytes; }

  /// c [64, 64] = rows of a warpgroup of the one's own matrix, times the tile's rows.
  __device__ __forceinline__ void multiply_rows(float (&c)[32], int which, int stage, int warpgroup) const {
    multiply_tiles<tile_rows, Size::D>(c, own(which), Size::own_rows, warpgroup * 64 * 128, at(stage, which));
  }
};

struct Barriers {
  Barrier own, full[stages], empty[stages];
};
/// By one thread, before all meet.
__device__ __forceinline__ void begin_all(Barriers& barriers, int rows) {
  begin(barriers.own, 1);
  for (int i = 0; i < stages; ++i) begin(barriers.full[i], 1), begin(barriers.empty[i], rows > 64 ? 2 : 1);
  show_barriers();
}

/// What one thread of the last warpgroup asks for: the block's own rows of two matrices, and so many tiles of two others, from a head and a
/// row each.
struct Place {
  int head, row;
};
template <class Size, class PlaceOf>
__device__ __forceinline__ void produce(const Tiles<Size>& tile, Barriers& barriers, const TileMap& own_first, const TileMap& own_second, Place own,
                                        const TileMap& first, const TileMap& second, int count, const PlaceOf& place_of) {
  set_registers<24, false>();
  constexpr int D = Size::D;
  if (int(threadIdx.x) != Size::consumers * 128) return;
  arrive_expecting(barriers.own, 2 * Size::own_bytes);
  load_tile<D>(tile.own(0), own_first, Size::own_rows, own.head, own.row, barriers.own);
  load_tile<D>(tile.own(1), own_second, Size::own_rows, own.head, own.row, barriers.own);
  for (int i = 0; i < count; ++i) {
    const int stage = i % stages;
    const Place place = place_of(i);
    wait_for(barriers.empty[stage], i / stages % 2 ^ 1);
    arrive_expecting(barriers.full[stage], 2 * Size::tile_bytes);
    load_tile<D>(tile.at(stage, 0), first, tile_rows, place.head, place.row, barriers.full[stage]);
    load_tile<D>(tile.at(stage, 1), second, tile_rows, place.head, place.row, barriers.full[stage]);
  }
}

#endif

/// Short sequences: a block has a head's keys and values, and takes the heads of queries that look at them one after the other; the next one comes
/// beside it.
template <int D>
__global__ void __launch_bounds__(128, D <= 64 ? 3 : 2)
    attention_backward_short_wgmma(const CONAN_GRID_CONSTANT TileMap q, const CONAN_GRID_CONSTANT TileMap k, const CONAN_GRID_CONSTANT TileMap v,
                                   const CONAN_GRID_CONSTANT TileMap dy, View dq, NarrowView narrow_dq, View dk, NarrowView narrow_dk, View dv,
                                   NarrowView narrow_dv, Shape s) {
#if CONAN_WARPGROUPS
  constexpr int tile_bytes = tile_rows * D * 2;
  const int b = int(blockIdx.x), kv_head = int(blockIdx.y), q0 = s.q_offsets[b], kv0 = s.kv_offsets[b];
  const int rows = s.q_offsets[b + 1] - q0, keys = s.kv_offsets[b + 1] - kv0, start = s.q_starts[b];
  if (!is_short(s.q_offsets, s.kv_offsets, b) || keys == 0) return;
  CONAN_LAUNCH_MEMORY(memory);
  __shared__ Barrier both, full[2];
  unsigned char *const key_tile = memory, *const value_tile = memory + tile_bytes;
  unsigned char *const share_rows = memory + 6 * tile_bytes, *const slope_rows = share_rows + tile_rows * 128;
  const auto tiles_of = [&](int i) { return memory + (2 + i % 2 * 2) * tile_bytes; };
  const int id = int(threadIdx.x), lane = id % 32, own = id / 32 * 16 + lane / 4;
  const auto load = [&](int i) {
    arrive_expecting(full[i % 2], 2 * tile_bytes);
    load_tile<D>(tiles_of(i), q, tile_rows, kv_head * s.group + i, q0, full[i % 2]);
    load_tile<D>(tiles_of(i) + tile_bytes, dy, tile_rows, kv_head * s.group + i, q0, full[i % 2]);
  };
  if (id == 0) {
    begin(both, 1), begin(full[0], 1), begin(full[1], 1);
    show_barriers();
  }
  __syncthreads();
  if (id == 0) {
    arrive_expecting(both, 2 * tile_bytes);
    load_tile<D>(key_tile, k, tile_rows, kv_head, kv0, both);
    load_tile<D>(value_tile, v, tile_rows, kv_head, kv0, both);
    load(0);
  }
  const float factor = s.scale * log2_e;
  float key_sums[D / 2] = {}, value_sums[D / 2] = {};
  wait_for(both, 0);
#pragma unroll 1
  for (int i = 0; i < s.group; ++i) {
    __syncthreads();  // all are done with the head before
    if (id == 0 && i + 1 < s.group) load(i + 1);
    const unsigned char *const query_tile = tiles_of(i), *const slope_tile = query_tile + tile_bytes;
    float scores[tile_rows / 2], gradients[tile_rows / 2];
    wait_for(full[i % 2], i / 2 % 2);
    begin_products();
    multiply_tiles<tile_rows, D>(scores, query_tile, tile_rows, 0, key_tile);
    multiply_tiles<tile_rows, D>(gradients, slope_tile, tile_rows, 0, value_tile);
    commit_products();
    wait_for_products<0>();
    settled(scores), settled(gradients);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = own + 8 * half;
      weigh(scores, half, s, start + r, r < rows, keys, factor);
      float total = 0, mean = 0;
#pragma unroll
      for (int n = 0; n < tile_rows / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float share = scores[4 * n + 2 * half + e];
          total += share;
          mean += share * gradients[4 * n + 2 * half + e];
        }
      total = row_sum(total), mean = row_sum(mean);
      const float one = total > 0 ? 1 / total : 0;  // behind the last query there is nothing
      mean *= one;
#pragma unroll
      for (int n = 0; n < tile_rows / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float &share = scores[4 * n + 2 * half + e], &slope = gradients[4 * n + 2 * half + e];
          share *= one;
          slope = share * (slope - mean) * s.scale;
        }
    }
    // As tiles of a row a query; `at`: the first column's place in the lane's first row.
    int at = (own * 128 + lane % 4 * 4) ^ lane / 4 * 16;
    not_ahead(at);
#pragma unroll
    for (int e = 0; e < tile_rows / 2; e += 2) {
      const int place = (at ^ e / 4 * 16) + e / 2 % 2 * 1024;
      *reinterpret_cast<uint32_t*>(share_rows + place) = pack_bf16(scores[e], scores[e + 1]);
      *reinterpret_cast<uint32_t*>(slope_rows + place) = pack_bf16(gradients[e], gradients[e + 1]);
    }
    show_to_tensor_cores();
    __syncthreads();
    float sums[D / 2];
    begin_products();
#pragma unroll
    for (int j = 0; j < tile_rows / 16; ++j) {
      const auto along = [&](const unsigned char* tile) { return further(tile_of(tile, tile_rows * 128), j * 2048); };
      multiply<D, false, true>(sums, further(tile_of(slope_rows), j * 32), along(key_tile), j > 0);
      multiply<D, true, true>(value_sums, along(share_rows), along(slope_tile), true);
      multiply<D, true, true>(key_sums, along(slope_rows), along(query_tile), true);
    }
    commit_products();
    wait_for_products<0>();
    settled(sums), settled(key_sums), settled(value_sums);
    store<D>(sums, {1, 1}, q0, own, rows, (kv_head * s.group + i) * s.head_dim, s.head_dim, dq, narrow_dq);
  }
  store<D>(key_sums, {1, 1}, kv0, own, keys, kv_head * s.head_dim, s.head_dim, dk, narrow_dk);
  store<D>(value_sums, {1, 1}, kv0, own, keys, kv_head * s.head_dim, s.head_dim, dv, narrow_dv);
#endif
}

/// Keys come twice, unless they are one tile: first for what probabilities are computed from, which `stats` [heads, rows of q] keeps, then
/// for the gradient.
template <class Size>
__global__ void __launch_bounds__(Size::threads, 1)
    attention_backward_query_wgmma(const CONAN_GRID_CONSTANT TileMap q, const CONAN_GRID_CONSTANT TileMap k, const CONAN_GRID_CONSTANT TileMap v,
                                   const CONAN_GRID_CONSTANT TileMap dy, View dq, NarrowView narrow_dq, Row* stats, int64_t stats_rows, Shape s) {
#if CONAN_WARPGROUPS
  const auto [q0, count, kv0, keys, start, column, kv_column] = own_queries(s, Size::own_rows, gridDim.z - 1 - blockIdx.z);
  const int first = int(s.first_key(start)) / tile_rows * tile_rows, end = int(s.end_key(start + count - 1, keys));
  const int tiles = (end - first + tile_rows - 1) / tile_rows, all = tiles == 1 ? 1 : 2 * tiles;
  if (count <= 0 || tiles <= 0 || is_short(s.q_offsets, s.kv_offsets, int(blockIdx.x))) return;
  CONAN_LAUNCH_MEMORY(memory);
  __shared__ Barriers barriers;
  constexpr int D = Size::D;
  const int id = int(threadIdx.x), warpgroup = of_warp(id / 128), head = int(blockIdx.y), rows = int(count);
  if (id == 0) begin_all(barriers, rows);
  __syncthreads();
  const Tiles<Size> tile{memory};
  if (warpgroup == Size::consumers) {
    produce(tile, barriers, q, dy, {head, int(q0)}, k, v, all, [&](int i) -> Place {
      return {head / s.group, int(kv0) + first + i % tiles * tile_rows};
    });
    return;
  }
  set_registers<240, true>();
  if (64 * warpgroup >= rows) return;
  const int lane = id % 32, own = 64 * warpgroup + id % 128 / 32 * 16 + lane / 4;
  const float factor = s.scale * log2_e;
  float most[2] = {-INFINITY, -INFINITY}, total[2] = {}, mean[2] = {}, base[2], sums[D / 2] = {}, scores[32], gradients[32];
  wait_for(barriers.own, 0);
  for (int i = 0; i < all; ++i) {
    const int stage = i % stages, j0 = first + i % tiles * tile_rows, i0 = int(start) + 64 * warpgroup;
    wait_for(barriers.full[stage], i / stages % 2);
    begin_products();
    tile.multiply_rows(scores, 0, stage, warpgroup);
    tile.multiply_rows(gradients, 1, stage, warpgroup);
    commit_products();
    wait_for_products<0>();
    settled(scores), settled(gradients);
    if (!(j0 + tile_rows <= keys && s.sees(i0, j0 + tile_rows - 1) && s.sees(i0 + 63, j0))) {
#pragma unroll
      for (int e = 0; e < 32; ++e) {
        const int j = j0 + e / 4 * 8 + lane % 4 * 2 + e % 2;
        if (j >= keys || !s.sees(start + own + e / 2 % 2 * 8, j)) scores[e] = -INFINITY;
      }
    }
    if (i < tiles) {
      if (all > 1 && id % 128 == 0) arrive(barriers.empty[stage]);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float now = most[half];
#pragma unroll
        for (int n = 0; n < 8; ++n) now = fmaxf(now, fmaxf(scores[4 * n + 2 * half], scores[4 * n + 2 * half + 1]));
        now = row_max(now);
        const float at = now == -INFINITY ? 0 : now * factor, shrink = power_of_two(most[half] * factor - at);
        most[half] = now;
        total[half] *= shrink, mean[half] *= shrink;
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
          for (int e = 2 * half; e < 2 * half + 2; ++e) {
            const float p = power_of_two(scores[4 * n + e] * factor - at);
            total[half] += p;
            mean[half] += p * gradients[4 * n + e];
          }
      }
      if (i + 1 < tiles) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        total[half] = row_sum(total[half]);
        mean[half] = row_sum(mean[half]) / total[half];
        base[half] = most[half] * factor + log2f(total[half]);
        const int r = own + 8 * half;
        if (r < rows && lane % 4 == 0) stats[head * stats_rows + q0 + r] = {base[half], mean[half]};
        if (!(r < rows)) base[half] = mean[half] = 0;
      }
      if (all > 1) continue;
    }
#pragma unroll
    for (int e = 0; e < 32; ++e) {
      const int half = e / 2 % 2;
      scores[e] = power_of_two(scores[e] * factor - base[half]) * (gradients[e] - mean[half]) * s.scale;
    }
    uint32_t shares[4][4];
    hold<tile_rows>(shares, scores);
    begin_products();
    multiply_shares<tile_rows, D>(sums, shares, tile.at(stage, 0), true);
    commit_products();
    wait_for_products<0>();
    settled(sums);
    if (id % 128 == 0) arrive(barriers.empty[stage]);
  }
  store<D>(sums, {1, 1}, q0, own, rows, column, s.head_dim, dq, narrow_dq);
#endif
}

/// A block has 128 keys of one head; queries of all heads that use them come by 64.
template <class Size>
__global__ void __launch_bounds__(Size::threads, 1)
    attention_backward_key_wgmma(const CONAN_GRID_CONSTANT TileMap q, const CONAN_GRID_CONSTANT TileMap k, const CONAN_GRID_CONSTANT TileMap v,
                                 const CONAN_GRID_CONSTANT TileMap dy, View dk, NarrowView narrow_dk, View dv, NarrowView narrow_dv, const Row* stats,
                                 int64_t stats_rows, Shape s) {
#if CONAN_WARPGROUPS
  const int b = int(blockIdx.x), kv_head = int(blockIdx.y), j0 = int(blockIdx.z) * Size::own_rows;
  const int64_t kv0 = s.kv_offsets[b], q0 = s.q_offsets[b];
  const int keys = int(s.kv_offsets[b + 1] - kv0), queries = int(s.q_offsets[b + 1] - q0), start = s.q_starts[b];
  if (j0 >= keys || is_short(s.q_offsets, s.kv_offsets, b)) return;
  CONAN_LAUNCH_MEMORY(memory);
  __shared__ Barriers barriers;
  constexpr int D = Size::D;
  const int id = int(threadIdx.x), warpgroup = of_warp(id / 128), rows = keys - j0 < Size::own_rows ? keys - j0 : Size::own_rows;
  if (id == 0) begin_all(barriers, rows);
  __syncthreads();
  // Queries that see one of these keys: i >= j - right and i <= j + left.
  const int64_t low = s.right < 0 ? 0 : j0 - s.right - start, high = s.left < 0 ? queries : j0 + rows + s.left - start;
  const int first = int(low < 0 ? 0 : low), end = int(high < queries ? high : queries);
  const int tiles = end > first ? (end - first + tile_rows - 1) / tile_rows : 0, all = tiles * s.group;
  const Tiles<Size> tile{memory};
  if (warpgroup == Size::consumers) {
    produce(tile, barriers, k, v, {kv_head, int(kv0) + j0}, q, dy, all, [&](int i) -> Place {
      return {kv_head * s.group + i / tiles, int(q0) + first + i % tiles * tile_rows};
    });
    return;
  }
  set_registers<240, true>();
  if (64 * warpgroup >= rows) return;
  const int lane = id % 32, own = 64 * warpgroup + id % 128 / 32 * 16 + lane / 4;
  const float factor = s.scale * log2_e;
  float key_sums[D / 2] = {}, value_sums[D / 2] = {}, shares[32], slopes[32];
  wait_for(barriers.own, 0);
  for (int i = 0; i < all; ++i) {
    const int stage = i % stages, n0 = first + i % tiles * tile_rows;
    const Row* of = stats + (kv_head * s.group + i / tiles) * stats_rows + q0 + n0;
    wait_for(barriers.full[stage], i / stages % 2);
    begin_products();
    tile.multiply_rows(shares, 0, stage, warpgroup);
    tile.multiply_rows(slopes, 1, stage, warpgroup);
    commit_products();
    wait_for_products<0>();
    settled(shares), settled(slopes);
    const int i0 = start + n0, own_j = j0 + 64 * warpgroup;
    if (!(n0 + tile_rows <= queries && s.sees(i0, own_j + 63) && s.sees(i0 + tile_rows - 1, own_j))) {
#pragma unroll
      for (int e = 0; e < 32; ++e) {
        const int m = e / 4 * 8 + lane % 4 * 2 + e % 2;
        if (n0 + m >= queries || !s.sees(i0 + m, j0 + own + e / 2 % 2 * 8)) shares[e] = -INFINITY;
      }
    }
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int m = 8 * n + lane % 4 * 2 + e;
        const Row row = of[n0 + m < queries ? m : 0];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float &share = shares[4 * n + 2 * half + e], &slope = slopes[4 * n + 2 * half + e];
          share = power_of_two(share * factor - row.base);
          slope = share * (slope - row.mean) * s.scale;
        }
      }
    uint32_t held[2][4][4];
    hold<tile_rows>(held[0], slopes);
    hold<tile_rows>(held[1], shares);
    begin_products();
    multiply_shares<tile_rows, D>(key_sums, held[0], tile.at(stage, 0), true);
    multiply_shares<tile_rows, D>(value_sums, held[1], tile.at(stage, 1), true);
    commit_products();
    wait_for_products<0>();
    settled(key_sums), settled(value_sums);
    if (id % 128 == 0) arrive(barriers.empty[stage]);
  }
  store<D>(key_sums, {1, 1}, kv0 + j0, own, rows, kv_head * s.head_dim, s.head_dim, dk, narrow_dk);
  store<D>(value_sums, {1, 1}, kv0 + j0, own, rows, kv_head * s.head_dim, s.head_dim, dv, narrow_dv);
#endif
}

template <int D>
void run(Arguments& args, const AttentionBackwardArgs& a, const Shape& s) {
  using Size = Size<D>;
  constexpr int own_rows = Size::own_rows;
  const AttentionArgs& f = a.forward;
  const NarrowView q = narrowed(args, f.narrow_q, f.q, f.q.cols), k = narrowed(args, f.narrow_k, f.k, f.k.cols),
                   v = narrowed(args, f.narrow_v, f.v, f.v.cols), dy = narrowed(args, a.narrow_dy, a.dy, a.dy.cols);
  const View dq = args.inout(a.dq), dk = args.inout(a.dk), dv = args.inout(a.dv);
  const NarrowView narrow_dq = args.inout(a.narrow_dq), narrow_dk = args.inout(a.narrow_dk), narrow_dv = args.inout(a.narrow_dv);
  const auto map = [&](const NarrowView& m, int heads, int rows) { return heads_map(m, heads, f.head_dim, rows); };
  int few = 0;
  for (int b = 0; b < f.sequences; ++b) few += is_short(f.q_offsets, f.kv_offsets, b);
  const auto sequences = unsigned(f.sequences);
  if (few > 0)
    launch_shared(args.device, attention_backward_short_wgmma<D>, dim3(sequences, unsigned(f.kv_heads)), dim3(128),
                  6 * Size::tile_bytes + 2 * tile_rows * 128, map(q, f.heads, tile_rows), map(k, f.kv_heads, tile_rows),
                  map(v, f.kv_heads, tile_rows), map(dy, f.heads, tile_rows), dq, narrow_dq, dk, narrow_dk, dv, narrow_dv, s);
  if (few == f.sequences) return;
  Row* stats = args.scratch<Row>(f.heads * q.rows);
  launch_shared(args.device, attention_backward_query_wgmma<Size>,
                dim3(sequences, unsigned(f.heads), blocks(longest(f.q_offsets, f.sequences), own_rows)), dim3(Size::threads), Size::memory,
                map(q, f.heads, own_rows), map(k, f.kv_heads, tile_rows), map(v, f.kv_heads, tile_rows), map(dy, f.heads, own_rows), dq, narrow_dq,
                stats, q.rows, s);
  launch_shared(args.device, attention_backward_key_wgmma<Size>,
                dim3(sequences, unsigned(f.kv_heads), blocks(longest(f.kv_offsets, f.sequences), own_rows)), dim3(Size::threads), Size::memory,
                map(q, f.heads, tile_rows), map(k, f.kv_heads, own_rows), map(v, f.kv_heads, own_rows), map(dy, f.heads, tile_rows), dk, narrow_dk,
                dv, narrow_dv, static_cast<const Row*>(stats), q.rows, s);
}

}  // namespace

void attention_backward_by_warpgroups(Arguments& args, const AttentionBackwardArgs& a, const Shape& s) {
  if (a.forward.sequences == 0) return;
  if (a.forward.head_dim <= 64) run<64>(args, a, s);
  else run<128>(args, a, s);
}

}  // namespace conan::cuda
