// Attention by whole warpgroups, for sm_90a, as attention.cu does it by warps. The copy engine brings queries once, and keys and values tile
// by tile, ahead of the warpgroups of 64 queries each that multiply them; a warpgroup begins the products of the next keys before it weighs
// the last ones, so that exponentials are computed beside products (FlashAttention-3, arXiv 2407.08608). Which kernel a sequence gets
// depends on its own length alone. Rows behind a sequence's end are multiplied by zero: they belong to its neighbours and are numbers.
#include "cuda/attention.h"
#include "cuda/hopper.h"

namespace conan::cuda {

namespace {

/// D: channels of a head, rounded up. Without a producer one thread asks for everything at the beginning: there is one tile.
template <int D_, int consumers_, int keys_, int stages_, bool producer_>
struct Plan {
  static constexpr int D = D_, consumers = consumers_, queries = 64 * consumers, keys = keys_, stages = stages_;
  static constexpr bool producer = producer_;
  static constexpr int threads = 128 * (consumers + producer), query_bytes = queries * D * 2, tile_bytes = keys * D * 2;
  static constexpr int memory = query_bytes + 2 * stages * tile_bytes;
};
template <int D>
using Long = Plan<D, 2, 128, 2, true>;
template <int D>
using Short = Plan<D, 1, 64, 1, false>;  // for sequences of up to 64 keys

template <class P>
__global__ void __launch_bounds__(P::threads, P::producer ? 1 : 3)
    attention_wgmma(const CONAN_GRID_CONSTANT TileMap q, const CONAN_GRID_CONSTANT TileMap k, const CONAN_GRID_CONSTANT TileMap v, View y,
                    NarrowView narrow_y, Shape s) {
#if CONAN_WARPGROUPS
  constexpr int D = P::D;
  // Later queries see more keys where they see what is before them: they begin first.
  const auto [q0, count, kv0, keys, start, column, kv_column] = own_queries(s, P::queries, gridDim.z - 1 - blockIdx.z);
  if (count <= 0 || (keys > Short<D>::keys) != P::producer) return;
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

  const int first = int(s.first_key(start)) / P::keys * P::keys, end = int(s.end_key(start + count - 1, keys));
  const int tiles = (end - first + P::keys - 1) / P::keys;
  unsigned char* const key_tiles = memory + P::query_bytes;
  unsigned char* const value_tiles = key_tiles + P::stages * P::tile_bytes;
  const auto produce = [&] {
    arrive_expecting(full_queries, P::query_bytes);
    for (int c = 0; c < D; c += 64) load_box(memory + c * P::queries * 2, q, c, head, int(q0), full_queries);
    for (int tile = 0; tile < tiles; ++tile) {
      const int stage = tile % P::stages, before = tile / P::stages % 2 ^ 1, row = int(kv0) + first + tile * P::keys, kv_head = head / s.group;
      wait_for(empty_keys[stage], before);
      arrive_expecting(full_keys[stage], P::tile_bytes);
      for (int c = 0; c < D; c += 64) load_box(key_tiles + stage * P::tile_bytes + c * P::keys * 2, k, c, kv_head, row, full_keys[stage]);
      wait_for(empty_values[stage], before);
      arrive_expecting(full_values[stage], P::tile_bytes);
      for (int c = 0; c < D; c += 64) load_box(value_tiles + stage * P::tile_bytes + c * P::keys * 2, v, c, kv_head, row, full_values[stage]);
    }
  };
  if (P::producer && warpgroup == P::consumers) {
    set_registers<24, false>();
    if (id == P::consumers * 128) produce();
    return;
  }
  if constexpr (P::producer) set_registers<240, true>();
  else if (id == 0) produce();
  if (64 * warpgroup >= rows) return;

  const int warp = id % 128 / 32, lane = id % 32, own = 64 * warpgroup + 16 * warp + lane / 4;  // row, and the one eight below it
  float sums[D / 2] = {}, scores[P::keys / 2], most[2] = {-INFINITY, -INFINITY}, total[2] = {}, shrink[2];
  uint32_t held[P::keys / 16][4];
  const float factor = s.scale * log2_e;  // powers of two instead of e

  const auto multiply_keys = [&](int tile) {
    const int stage = tile % P::stages;
    wait_for(full_keys[stage], tile / P::stages % 2);
    begin_products();
#pragma unroll
    for (int c = 0; c < D / 16; ++c) {
      const uint64_t left = tile_of(memory + c / 4 * P::queries * 128 + warpgroup * 64 * 128);
      const uint64_t right = tile_of(key_tiles + stage * P::tile_bytes + c / 4 * P::keys * 128);
      multiply<P::keys>(scores, further(left, c % 4 * 32), further(right, c % 4 * 32), c > 0);
    }
    commit_products();
  };
  const auto multiply_values = [&](int tile) {
    const int stage = tile % P::stages;
    wait_for(full_values[stage], tile / P::stages % 2);
    begin_products();
#pragma unroll
    for (int n = 0; n < P::keys / 16; ++n)
      multiply_held<D>(sums, held[n], further(tile_of(value_tiles + stage * P::tile_bytes, P::keys * 128), n * 2048), tile > 0 || n > 0);
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
  const auto hold = [&] {
#pragma unroll
    for (int n = 0; n < P::keys / 16; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) held[n][i] = pack_bf16(scores[8 * n + 2 * i], scores[8 * n + 2 * i + 1]);
  };

  wait_for(full_queries, 0);
  multiply_keys(0);
  wait_for_products<0>();
  settled(scores);
  release(empty_keys, 0);
  weigh(0);
  hold();
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
    hold();
  }
  multiply_values(tiles - 1);
  wait_for_products<0>();
  settled(sums);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float share = 1 / row_sum(total[half]);
    if (own + 8 * half >= rows) continue;
    const int64_t row = q0 + own + 8 * half;
    const bool in_pairs = reinterpret_cast<uintptr_t>(y.data) % 8 == 0 && y.stride % 2 == 0;
#pragma unroll
    for (int c = 0; c < D / 8; ++c) {
      const int d = 8 * c + lane % 4 * 2;
      const float2 two = {sums[4 * c + 2 * half] * share, sums[4 * c + 2 * half + 1] * share};
      if (d >= s.head_dim) continue;
      if (narrow_y.data) *reinterpret_cast<uint32_t*>(narrow_y.row(row) + column + d) = pack_bf16(two.x, two.y);
      else if (in_pairs) *reinterpret_cast<float2*>(y.row(row) + column + d) = two;
      else y.row(row)[column + d] = two.x, y.row(row)[column + d + 1] = two.y;
    }
  }
#endif
}

struct Inputs {
  NarrowView q, k, v;
};

template <class P>
void run(Arguments& args, const AttentionArgs& a, const Shape& s, const Inputs& in, const View& y, const NarrowView& narrow_y) {
  const auto map = [&](const NarrowView& m, int heads, int box) { return tile_map(m.data, a.head_dim, heads, m.rows, a.head_dim, m.stride, box); };
  launch_shared(args.device, attention_wgmma<P>,
                dim3(unsigned(a.sequences), unsigned(a.heads), blocks(longest(a.q_offsets, a.sequences), P::queries)), dim3(P::threads), P::memory,
                map(in.q, a.heads, P::queries), map(in.k, a.kv_heads, P::keys), map(in.v, a.kv_heads, P::keys), y, narrow_y, s);
}

}  // namespace

NarrowView narrowed(Arguments& args, const Bf16Matrix& narrow, const Matrix& m) {
  if (narrow.data) return args.in(narrow);
  const View x = args.in(m);
  return {const_cast<uint16_t*>(rounded(args, x, x.cols)), x.rows, x.cols, x.cols};
}

void attention_by_warpgroups(Arguments& args, const AttentionArgs& a, const Shape& s) {
  if (a.sequences == 0) return;
  const Inputs inputs = {narrowed(args, a.narrow_q, a.q), narrowed(args, a.narrow_k, a.k), narrowed(args, a.narrow_v, a.v)};
  const View y = args.inout(a.y);
  const NarrowView narrow_y = args.inout(a.narrow_y);
  int64_t shortest = INT64_MAX;
  for (int b = 0; b < a.sequences; ++b) shortest = std::min<int64_t>(shortest, a.kv_offsets[b + 1] - a.kv_offsets[b]);
  const auto of = [&](auto longer, auto shorter) {
    if (shortest <= decltype(shorter)::keys) run<decltype(shorter)>(args, a, s, inputs, y, narrow_y);
    if (longest(a.kv_offsets, a.sequences) > decltype(shorter)::keys) run<decltype(longer)>(args, a, s, inputs, y, narrow_y);
  };
  if (a.head_dim <= 64) of(Long<64>(), Short<64>());
  else of(Long<128>(), Short<128>());
}

}  // namespace conan::cuda
