// Attention by whole warpgroups, for sm_90a, as attention.cu does it by warps. The copy engine brings queries once, and keys and values tile
// by tile, ahead of the warpgroups of 64 queries each that multiply them; a warpgroup begins the products of the next keys before it weighs
// the last ones, so that exponentials are computed beside products (FlashAttention-3, arXiv 2407.08608). Which kernel a sequence gets
// depends on its own length alone. Rows behind a sequence's end are multiplied by zero: they belong to its neighbours and are numbers.
#include "cuda/attention_tiles.h"

namespace conan::cuda {

namespace {

/// D: channels of a head, rounded up.
template <int D_>
struct Plan {
  static constexpr int D = D_, consumers = 2, queries = 64 * consumers, keys = 128, stages = 2, threads = 128 * (consumers + 1);
  static constexpr int query_bytes = queries * D * 2, tile_bytes = keys * D * 2, memory = query_bytes + 2 * stages * tile_bytes;
};
constexpr int few_keys = 64;  // sequences of no more have a kernel of their own

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
      float most = -INFINITY;
#pragma unroll
      for (int n = 0; n < few_keys / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int j = 8 * n + lane % 4 * 2 + e;
          float& score = scores[4 * n + 2 * half + e];
          if (r >= rows || j >= keys || !s.sees(start + r, j)) score = -INFINITY;
          most = fmaxf(most, score);
        }
      most = row_max(most);
      const float base = most == -INFINITY ? 0 : most * factor;
      total[half] = 0;
#pragma unroll
      for (int n = 0; n < few_keys / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& score = scores[4 * n + 2 * half + e];
          score = power_of_two(score * factor - base);
          total[half] += score;
        }
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

template <class P>
__global__ void __launch_bounds__(P::threads, 1) attention_wgmma(const CONAN_GRID_CONSTANT TileMap q, const CONAN_GRID_CONSTANT TileMap k,
                                                                 const CONAN_GRID_CONSTANT TileMap v, View y, NarrowView narrow_y, Shape s) {
#if CONAN_WARPGROUPS
  constexpr int D = P::D;
  // Later queries see more keys where they see what is before them: they begin first.
  const auto [q0, count, kv0, keys, start, column, kv_column] = own_queries(s, P::queries, gridDim.z - 1 - blockIdx.z);
  const int first = int(s.first_key(start)) / P::keys * P::keys, end = int(s.end_key(start + count - 1, keys));
  const int tiles = (end - first + P::keys - 1) / P::keys;
  if (count <= 0 || keys <= few_keys || tiles <= 0) return;
  CONAN_LAUNCH_MEMORY(memory);
  __shared__ Barrier full_queries, full_keys[P::stages], full_values[P::stages], empty_keys[P::stages], empty_values[P::stages];
  const int id = int(threadIdx.x), warpgroup = id / 128, head = int(blockIdx.y), rows = int(count);
  const int consumers = rows > 64 ? P::consumers : 1;
  if (id == 0) {
    begin(full_queries, 1);
    for (int i = 0; i < P::stages; ++i)
      begin(full_keys[i], 1), begin(full_values[i], 1), begin(empty_keys[i], consumers), begin(empty_values[i], consumers);
    show_barriers();
  }
  __syncthreads();

  unsigned char* const key_tiles = memory + P::query_bytes;
  unsigned char* const value_tiles = key_tiles + P::stages * P::tile_bytes;
  const auto produce = [&] {
    arrive_expecting(full_queries, P::query_bytes);
    load_tile<D>(memory, q, P::queries, head, int(q0), full_queries);
    for (int tile = 0; tile < tiles; ++tile) {
      const int stage = tile % P::stages, before = tile / P::stages % 2 ^ 1, row = int(kv0) + first + tile * P::keys, kv_head = head / s.group;
      wait_for(empty_keys[stage], before);
      arrive_expecting(full_keys[stage], P::tile_bytes);
      load_tile<D>(key_tiles + stage * P::tile_bytes, k, P::keys, kv_head, row, full_keys[stage]);
      wait_for(empty_values[stage], before);
      arrive_expecting(full_values[stage], P::tile_bytes);
      load_tile<D>(value_tiles + stage * P::tile_bytes, v, P::keys, kv_head, row, full_values[stage]);
    }
  };
  if (warpgroup == P::consumers) {
    set_registers<24, false>();
    if (id == P::consumers * 128) produce();
    return;
  }
  set_registers<240, true>();
  if (64 * warpgroup >= rows) return;

  const int warp = id % 128 / 32, lane = id % 32, own = 64 * warpgroup + 16 * warp + lane / 4;  // row, and the one eight below it
  float sums[D / 2] = {}, scores[P::keys / 2], most[2] = {-INFINITY, -INFINITY}, total[2] = {}, shrink[2];
  uint32_t held[P::keys / 16][4];
  const float factor = s.scale * log2_e;  // powers of two instead of e

  const auto multiply_keys = [&](int tile) {
    const int stage = tile % P::stages;
    wait_for(full_keys[stage], tile / P::stages % 2);
    begin_products();
    multiply_tiles<P::keys, D>(scores, memory, P::queries, warpgroup * 64 * 128, key_tiles + stage * P::tile_bytes);
    commit_products();
  };
  const auto multiply_values = [&](int tile) {
    const int stage = tile % P::stages;
    wait_for(full_values[stage], tile / P::stages % 2);
    begin_products();
    multiply_shares<P::keys, D>(sums, held, value_tiles + stage * P::tile_bytes, tile > 0);
    commit_products();
  };
  const auto release = [&](Barrier(&barriers)[P::stages], int tile) {
    if (id % 128 == 0) arrive(barriers[tile % P::stages]);
  };
  // Scores become shares of the largest so far, and `shrink` what earlier ones are multiplied by.
  const auto weigh = [&](int tile) {
    const int j0 = first + tile * P::keys, i0 = int(start) + 64 * warpgroup;
    const bool all = j0 + P::keys <= keys && s.sees(i0, j0 + P::keys - 1) && s.sees(i0 + 63, j0) && 64 * warpgroup + 64 <= rows;
    if (!all) {
#pragma unroll
      for (int n = 0; n < P::keys / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int r = own + e / 2 * 8, j = j0 + 8 * n + lane % 4 * 2 + e % 2;
          if (r >= rows || j >= keys || !s.sees(start + r, j)) scores[4 * n + e] = -INFINITY;
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
  wait_for(full_queries, 0);
  multiply_keys(0);
  wait_for_products<0>();
  settled(scores);
  release(empty_keys, 0);
  weigh(0);
  hold<P::keys>(held, scores);
  for (int tile = 1; tile < tiles; ++tile) {
    multiply_keys(tile);
    multiply_values(tile - 1);
    wait_for_products<1>();
    settled(scores);
    release(empty_keys, tile);
    weigh(tile);
    wait_for_products<0>();
    settled(sums);
    release(empty_values, tile - 1);
#pragma unroll
    for (int c = 0; c < D / 8; ++c)
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[4 * c + e] *= shrink[e / 2];
    hold<P::keys>(held, scores);
  }
  multiply_values(tiles - 1);
  wait_for_products<0>();
  settled(sums);
  store<D>(sums, {1 / row_sum(total[0]), 1 / row_sum(total[1])}, q0, own, rows, column, s.head_dim, y, narrow_y);
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
  if (longest(a.kv_offsets, a.sequences) <= few_keys) return;
  using P = Plan<D>;
  launch_shared(args.device, attention_wgmma<P>, dim3(sequences, unsigned(a.heads), blocks(longest(a.q_offsets, a.sequences), P::queries)),
                dim3(P::threads), P::memory, map(in.q, a.heads, P::queries), map(in.k, a.kv_heads, P::keys), map(in.v, a.kv_heads, P::keys), y,
                narrow_y, s);
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
