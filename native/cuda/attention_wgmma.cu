// Attention by whole warpgroups, for sm_90a, as attention.cu does it by warps. The copy engine brings queries once, and keys and values tile
// by tile, ahead of the warpgroups of 64 queries each that multiply them; a warpgroup begins the products of the next keys before it weighs
// the last ones, so that exponentials are computed beside products (FlashAttention-3, arXiv 2407.08608). Blocks stay and take one piece of
// work after the other, so that the next one's first tiles come while one is finished. Which kernel a sequence gets depends on its own
// length alone. Rows behind a sequence's end are multiplied by zero: they belong to its neighbours and are numbers.
#include <algorithm>

#include "cuda/attention_tiles.h"

namespace conan::cuda {

namespace {

/// D: channels of a head, rounded up.
template <int D_>
struct Plan {
  static constexpr int D = D_, consumers = 2, queries = 64 * consumers, keys = 128, stages = 2, threads = 128 * (consumers + 1);
  static constexpr int query_bytes = queries * D * 2, tile_bytes = keys * D * 2, memory = 2 * query_bytes + 2 * stages * tile_bytes;
};

/// Short sequences: a block has 64 queries, and takes some heads one after the other; what the next one needs comes beside it.
template <int D>
__global__ void __launch_bounds__(128, 2)
    attention_short_wgmma(const CONAN_GRID_CONSTANT TileMap q, const CONAN_GRID_CONSTANT TileMap k, const CONAN_GRID_CONSTANT TileMap v, View y,
                          NarrowView narrow_y, Shape s, int heads_each) {
#if CONAN_WARPGROUPS
  constexpr int tile_bytes = few_keys * D * 2;
  const int b = int(blockIdx.x), first_head = int(blockIdx.y) * heads_each;
  const int heads = s.heads - first_head < heads_each ? s.heads - first_head : heads_each;
  const int q0 = s.q_offsets[b] + int(blockIdx.z) * 64, kv0 = s.kv_offsets[b], keys = s.kv_offsets[b + 1] - kv0;
  const int rows = s.q_offsets[b + 1] - q0, start = s.q_starts[b] + int(blockIdx.z) * 64;
  if (rows <= 0 || keys > few_keys) return;
  CONAN_LAUNCH_MEMORY(memory);
  __shared__ Barrier full[2];
  const int id = int(threadIdx.x), lane = id % 32, own = id / 32 * 16 + lane / 4;
  if (id == 0) {
    begin(full[0], 1), begin(full[1], 1);
    show_barriers();
  }
  const auto load = [&](int i) {
    unsigned char* at = memory + i % 2 * 3 * tile_bytes;
    arrive_expecting(full[i % 2], 3 * tile_bytes);
    load_tile<D>(at, q, 64, first_head + i, q0, full[i % 2]);
    load_tile<D>(at + tile_bytes, k, few_keys, (first_head + i) / s.group, kv0, full[i % 2]);
    load_tile<D>(at + 2 * tile_bytes, v, few_keys, (first_head + i) / s.group, kv0, full[i % 2]);
  };
  const float factor = s.scale * log2_e;
  __syncthreads();
  if (id == 0) load(0);
#pragma unroll 1
  for (int i = 0; i < heads; ++i) {
    __syncthreads();  // all are done with the head before
    if (id == 0 && i + 1 < heads) load(i + 1);
    const unsigned char* at = memory + i % 2 * 3 * tile_bytes;
    float scores[few_keys / 2], sums[D / 2], total[2];
    wait_for(full[i % 2], i / 2 % 2);
    begin_products();
    multiply_tiles<few_keys, D>(scores, at, 64, 0, at + tile_bytes);
    commit_products();
    wait_for_products<0>();
    settled(scores);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = own + 8 * half;
      weigh(scores, half, s, start + r, r < rows, keys, factor);
      total[half] = 0;
#pragma unroll
      for (int n = 0; n < few_keys / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) total[half] += scores[4 * n + 2 * half + e];
    }
    uint32_t held[few_keys / 16][4];
    hold<few_keys>(held, scores);
    begin_products();
    multiply_shares<few_keys, D>(sums, held, at + 2 * tile_bytes, false);
    commit_products();
    wait_for_products<0>();
    settled(sums);
    store<D>(sums, {1 / row_sum(total[0]), 1 / row_sum(total[1])}, q0, own, rows, (first_head + i) * s.head_dim, s.head_dim, y, narrow_y);
  }
#endif
}

/// A part of a sequence's queries, and the tiles of keys that it sees; each of its heads is a piece of work.
struct alignas(16) Part {
  int q0, rows, start;          // first row, rows, and the first's position
  int kv0, keys, first, tiles;  // first row of the sequence's keys, their number; the first that is seen
  int head;
};

template <class P>
__global__ void __launch_bounds__(P::threads, 1)
    attention_wgmma(const CONAN_GRID_CONSTANT TileMap q, const CONAN_GRID_CONSTANT TileMap k, const CONAN_GRID_CONSTANT TileMap v, View y,
                    NarrowView narrow_y, Shape s, const Part* parts, int count) {
#if CONAN_WARPGROUPS
  constexpr int D = P::D;
  CONAN_LAUNCH_MEMORY(memory);
  __shared__ Part pieces[2];  // a piece of work, and the next one
  __shared__ Barrier full_queries[2], empty_queries[2], full_keys[P::stages], full_values[P::stages], empty_keys[P::stages], empty_values[P::stages];
  const int id = int(threadIdx.x), warpgroup = of_warp(id / 128);
  if (id == 0) {
    for (int i = 0; i < 2; ++i) begin(full_queries[i], 1), begin(empty_queries[i], P::consumers);
    for (int i = 0; i < P::stages; ++i)
      begin(full_keys[i], 1), begin(full_values[i], 1), begin(empty_keys[i], P::consumers), begin(empty_values[i], P::consumers);
    show_barriers();
  }
  __syncthreads();

  unsigned char* const key_tiles = memory + 2 * P::query_bytes;
  unsigned char* const value_tiles = key_tiles + P::stages * P::tile_bytes;
  int turn = 0;  // tiles of keys before this piece of work
  // Longest first; there and back again, so that all blocks get as much. Read a round ahead; nothing to do: no tiles.
  const auto piece_of = [&](int round) {
    const int at = int(round * gridDim.x + (round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x));
    Part piece = {};
    if (at < count) piece = parts[at / s.heads], piece.head = at % s.heads;
    return piece;
  };
  const auto produce = [&] {
    Part next = piece_of(0);
    for (int round = 0;; ++round) {
      const Part work = next;
      next = piece_of(round + 1);
      wait_for(empty_queries[round % 2], round / 2 % 2 ^ 1);
      pieces[round % 2] = work;
      if (work.tiles == 0) return arrive(full_queries[round % 2]);
      arrive_expecting(full_queries[round % 2], P::query_bytes);
      load_tile<D>(memory + round % 2 * P::query_bytes, q, P::queries, work.head, work.q0, full_queries[round % 2]);
      for (int tile = 0; tile < work.tiles; ++tile, ++turn) {
        const int stage = turn % P::stages, before = turn / P::stages % 2 ^ 1, row = work.kv0 + work.first + tile * P::keys;
        wait_for(empty_keys[stage], before);
        arrive_expecting(full_keys[stage], P::tile_bytes);
        load_tile<D>(key_tiles + stage * P::tile_bytes, k, P::keys, work.head / s.group, row, full_keys[stage]);
        wait_for(empty_values[stage], before);
        arrive_expecting(full_values[stage], P::tile_bytes);
        load_tile<D>(value_tiles + stage * P::tile_bytes, v, P::keys, work.head / s.group, row, full_values[stage]);
      }
    }
  };
  if (warpgroup == P::consumers) {
    set_registers<24, false>();
    if (id == P::consumers * 128) produce();
    return;
  }
  set_registers<240, true>();
  const int warp = id % 128 / 32, lane = id % 32, own = 64 * warpgroup + 16 * warp + lane / 4;  // row, and the one eight below it
  const float factor = s.scale * log2_e;                                                        // powers of two instead of e
  const auto release = [&](Barrier& barrier) {
    if (id % 128 == 0) arrive(barrier);
  };
  for (int round = 0;; ++round) {
    wait_for(full_queries[round % 2], round / 2 % 2);
    const Part work = pieces[round % 2];
    const int tiles = of_warp(work.tiles);
    if (tiles == 0) return;
    const unsigned char* const queries = memory + round % 2 * P::query_bytes;
    const auto stage_of = [&](int tile) { return (turn + tile) % P::stages; };
    const auto parity_of = [&](int tile) { return (turn + tile) / P::stages % 2; };
    if (64 * warpgroup >= work.rows) {  // nothing to do but to let go
      for (int tile = 0; tile < tiles; ++tile) {
        wait_for(full_keys[stage_of(tile)], parity_of(tile));
        release(empty_keys[stage_of(tile)]);
        wait_for(full_values[stage_of(tile)], parity_of(tile));
        release(empty_values[stage_of(tile)]);
      }
      release(empty_queries[round % 2]);
      turn += tiles;
      continue;
    }
    float sums[D / 2] = {}, scores[P::keys / 2], most[2] = {-INFINITY, -INFINITY}, total[2] = {}, shrink[2];
    uint32_t held[P::keys / 16][4];
    const auto multiply_keys = [&](int tile) {
      wait_for(full_keys[stage_of(tile)], parity_of(tile));
      begin_products();
      multiply_tiles<P::keys, D>(scores, queries, P::queries, warpgroup * 64 * 128, key_tiles + stage_of(tile) * P::tile_bytes);
      commit_products();
    };
    const auto multiply_values = [&](int tile) {
      wait_for(full_values[stage_of(tile)], parity_of(tile));
      begin_products();
      multiply_shares<P::keys, D>(sums, held, value_tiles + stage_of(tile) * P::tile_bytes, tile > 0);
      commit_products();
    };
    // Scores become shares of the largest so far, and `shrink` what earlier ones are multiplied by.
    const auto weigh = [&](int tile) {
      const int j0 = work.first + tile * P::keys, i0 = work.start + 64 * warpgroup;
      const bool all = j0 + P::keys <= work.keys && s.sees(i0, j0 + P::keys - 1) && s.sees(i0 + 63, j0) && 64 * warpgroup + 64 <= work.rows;
      if (!all) {
        const int j = j0 + lane % 4 * 2;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int r = own + 8 * half, i = work.start + r;
          const int from = int(s.first_key(i)) - j, to = r < work.rows ? int(s.end_key(i, work.keys)) - j : -1;
#pragma unroll
          for (int n = 0; n < P::keys / 8; ++n)
#pragma unroll
            for (int e = 0; e < 2; ++e)
              if (8 * n + e < from || 8 * n + e >= to) scores[4 * n + 2 * half + e] = -INFINITY;
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float now = most[half];
#pragma unroll
        for (int n = 0; n < P::keys / 8; ++n) now = fmaxf(now, fmaxf(scores[4 * n + 2 * half], scores[4 * n + 2 * half + 1]));
        now = row_max(now);
        const float base = now == -INFINITY ? 0 : now * factor;
        shrink[half] = power_of_two(most[half] * factor - base);
        most[half] = now;
        float sum = 0;
#pragma unroll
        for (int n = 0; n < P::keys / 8; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& score = scores[4 * n + 2 * half + e];
            score = power_of_two(score * factor - base);
            sum += score;
          }
        total[half] = total[half] * shrink[half] + sum;  // of this lane's keys
      }
    };
    multiply_keys(0);
    wait_for_products<0>();
    settled(scores);
    release(empty_keys[stage_of(0)]);
    weigh(0);
    hold<P::keys>(held, scores);
    for (int tile = 1; tile < tiles; ++tile) {
      multiply_keys(tile);
      multiply_values(tile - 1);
      wait_for_products<1>();
      settled(scores);
      release(empty_keys[stage_of(tile)]);
      weigh(tile);
      wait_for_products<0>();
      settled(sums);
      release(empty_values[stage_of(tile - 1)]);
#pragma unroll
      for (int c = 0; c < D / 8; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[4 * c + e] *= shrink[e / 2];
      hold<P::keys>(held, scores);
    }
    release(empty_queries[round % 2]);
    multiply_values(tiles - 1);
    wait_for_products<0>();
    settled(sums);
    release(empty_values[stage_of(tiles - 1)]);
    turn += tiles;
    store<D>(sums, {1 / row_sum(total[0]), 1 / row_sum(total[1])}, work.q0, own, work.rows, work.head * s.head_dim, s.head_dim, y, narrow_y);
  }
#endif
}

struct Inputs {
  NarrowView q, k, v;
};

template <int D>
void run(Arguments& args, const AttentionArgs& a, const Shape& s, const Inputs& in, const View& y, const NarrowView& narrow_y) {
  const auto map = [&](const NarrowView& m, int heads, int rows) { return heads_map(m, heads, a.head_dim, rows); };
  const unsigned sequences = unsigned(a.sequences);
  int64_t most = 0;  // queries of a short sequence
  for (int b = 0; b < a.sequences; ++b)
    if (a.kv_offsets[b + 1] - a.kv_offsets[b] <= few_keys) most = std::max<int64_t>(most, a.q_offsets[b + 1] - a.q_offsets[b]);
  if (most > 0) {
    const unsigned parts = blocks(most, 64);
    const int each = int(std::clamp<int64_t>(int64_t(sequences) * parts * a.heads / (4 * args.device.multiprocessors), 1, 8));
    launch_shared(args.device, attention_short_wgmma<D>, dim3(sequences, blocks(a.heads, each), parts), dim3(128), 6 * few_keys * D * 2,
                  map(in.q, a.heads, 64), map(in.k, a.kv_heads, few_keys), map(in.v, a.kv_heads, few_keys), y, narrow_y, s, each);
  }
  using P = Plan<D>;
  std::vector<Part> parts;  // those that see most come first
  for (int b = 0; b < a.sequences; ++b) {
    const int64_t keys = a.kv_offsets[b + 1] - a.kv_offsets[b], queries = a.q_offsets[b + 1] - a.q_offsets[b];
    for (int64_t z = 0; keys > few_keys && z * P::queries < queries; ++z) {
      const int64_t start = a.q_starts[b] + z * P::queries, last = a.q_starts[b] + std::min(queries, (z + 1) * P::queries) - 1;
      const int64_t first = s.first_key(start) / P::keys * P::keys, tiles = int64_t(blocks(s.end_key(last, keys) - first, P::keys));
      if (s.end_key(last, keys) <= first) continue;  // nothing
      parts.push_back(
          {int(a.q_offsets[b] + z * P::queries), int(last - start + 1), int(start), a.kv_offsets[b], int(keys), int(first), int(tiles), 0});
    }
  }
  if (parts.empty()) return;
  std::stable_sort(parts.begin(), parts.end(), [](const Part& x, const Part& y) { return x.tiles > y.tiles; });
  const int pieces = int(parts.size()) * a.heads;
  launch_shared(args.device, attention_wgmma<P>, dim3(unsigned(std::min(pieces, args.device.multiprocessors))), dim3(P::threads), P::memory,
                map(in.q, a.heads, P::queries), map(in.k, a.kv_heads, P::keys), map(in.v, a.kv_heads, P::keys), y, narrow_y, s, args.made(parts),
                pieces);
}

}  // namespace

void attention_by_warpgroups(Arguments& args, const AttentionArgs& a, const Shape& s) {
  if (a.sequences == 0) return;
  const Inputs inputs = {narrowed(args, a.narrow_q, a.q, a.q.cols), narrowed(args, a.narrow_k, a.k, a.k.cols),
                         narrowed(args, a.narrow_v, a.v, a.v.cols)};
  const View y = args.inout(a.y);
  const NarrowView narrow_y = args.inout(a.narrow_y);
  if (a.head_dim <= 64) run<64>(args, a, s, inputs, y, narrow_y);
  else run<128>(args, a, s, inputs, y, narrow_y);
}

}  // namespace conan::cuda
