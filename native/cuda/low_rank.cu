// Gradients of low-rank changes (LoRA). Bound by reading the rows: those of gradients are read once, for their product with b and for the
// gradient of b at the same time; those of inputs twice, for their products with a and for the gradient of a.
#include <algorithm>

#include "cuda/linear.h"

namespace conan::cuda {

namespace {

constexpr int most_spans = 4, most_ranks = 64, warps = 8, threads = 32 * warps, stages = 2;

/// Columns [first, first + count) of a matrix, which blocks from `block` on look at, and their ranks [rank0, rank0 + rank) of all.
struct Span {
  int first, count, block, rank0, rank;
  float scale;
  const float* b;  // [count, rank]
  float* gradient;
};
struct Spans {
  Span of[most_spans];
  int count;
};

/// Tiles of 32 KiB of rows, and what they are multiplied by: 16 `tiles` ranks, of which some may not be there.
template <int tiles, int columns, bool by_rows>
struct Layout {
  static constexpr int rows = 16384 / columns, row_bytes = 2 * columns, ranks = 16 * tiles, left_bytes = rows * row_bytes;
  static constexpr int right_row = 2 * ranks + 16;  // so that eight rows lie in other banks each
  static constexpr int stage_bytes = left_bytes + rows * right_row;
  static constexpr int shared = stages * stage_bytes + (by_rows ? warps * rows * ranks * int(sizeof(float)) : 0);
};

/// Block x has some columns of m [T, N], block y some rows. Sums over the rows, m^T v, v [T, ranks of all]: a part of its own for every y,
/// [y, N, 16 tiles]. With by_rows products with b too, a part of its own for every block of a span, [block, T, ranks of all].
template <int tiles, int columns, bool by_rows>
__global__ void __launch_bounds__(threads, tiles == 1 || !by_rows ? 2 : 1)
    low_rank_columns(Spans spans, NarrowView m, NarrowView v, float* sums_by_columns, float* sums_by_rows) {
  using L = Layout<tiles, columns, by_rows>;
  constexpr int high = columns / warps / 16, own_words = columns / warps / 8;
  CONAN_LAUNCH_MEMORY(memory);
  int which = 0;
  while (which + 1 < spans.count && int(blockIdx.x) >= spans.of[which + 1].block) ++which;
  const Span span = spans.of[which];
  const int own_block = int(blockIdx.x) - span.block, c0 = own_block * columns;
  const int64_t steps = (m.rows + L::rows - 1) / L::rows, first = steps * blockIdx.y / gridDim.y, end = steps * (blockIdx.y + 1) / gridDim.y;
  const int id = int(threadIdx.x), warp = id / 32, lane = id % 32;

  const auto stage_of = [&](int64_t step) { return memory + (step - first) % stages * L::stage_bytes; };
  // 16 bytes at a time, which lie so that ldmatrix meets no bank twice.
  const auto word_of = [](unsigned char* stage, int row, int word) { return stage + row * L::row_bytes + ((word ^ row % 8) << 4); };
  const auto copy = [&](int64_t step) {
    unsigned char* const stage = stage_of(step);
    const int64_t t0 = step * L::rows;
#pragma unroll
    for (int i = id; i < L::rows * columns / 8; i += threads) {
      const int row = i / (columns / 8), word = i % (columns / 8);
      const bool there = t0 + row < m.rows && c0 + 8 * word < span.count;
      copy_16(word_of(stage, row, word), there ? m.row(t0 + row) + span.first + c0 + 8 * word : m.data, there);
    }
    for (int i = id; i < L::rows * 2 * tiles; i += threads) {
      const int row = i / (2 * tiles), word = i % (2 * tiles);
      const bool there = t0 + row < m.rows;
      copy_16(stage + L::left_bytes + row * L::right_row + 16 * word, there ? v.row(t0 + row) + span.rank0 + 8 * word : v.data, there);
    }
    commit_copies();
  };

  uint32_t b[4][2 * tiles][2];  // by_rows: of the warp's 64 columns
  if constexpr (by_rows) {
    const auto at = [&](int c, int r) { return c < span.count && r < span.rank ? span.b[int64_t(c) * span.rank + r] : 0; };
#pragma unroll
    for (int s = 0; s < 4; ++s)
#pragma unroll
      for (int j = 0; j < 2 * tiles; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int c = c0 + 64 * warp + 16 * s + 8 * half + lane % 4 * 2, r = 8 * j + lane / 4;
          b[s][j][half] = pack_bf16(at(c, r), at(c + 1, r));
        }
  }
  float sums[high][2 * tiles][4] = {};
  float* const shares = reinterpret_cast<float*>(memory + stages * L::stage_bytes);

  if (first < end) copy(first);
  for (int64_t step = first; step < end; ++step) {
    wait_for_copies<0>();
    __syncthreads();  // this step is there, and nobody looks at the one before
    if (step + 1 < end) copy(step + 1);
    unsigned char *const left = stage_of(step), *const right = left + L::left_bytes;
#pragma unroll
    for (int t = 0; t < L::rows; t += 16) {
      uint32_t turned[tiles][4];
#pragma unroll
      for (int j = 0; j < tiles; ++j) load_matrices_transposed(turned[j], right + (t + lane % 16) * L::right_row + (2 * j + lane / 16) * 16);
#pragma unroll
      for (int i = 0; i < high; ++i) {
        uint32_t a[4];
        load_matrices_transposed(a, word_of(left, t + lane / 16 * 8 + lane % 8, warp * own_words + 2 * i + lane / 8 % 2));
#pragma unroll
        for (int j = 0; j < 2 * tiles; ++j) mma_bf16(sums[i][j], a, turned[j / 2][j % 2 * 2], turned[j / 2][j % 2 * 2 + 1]);
      }
      if constexpr (by_rows) {
        float own[2 * tiles][4] = {};
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          uint32_t a[4];
          load_matrices(a, word_of(left, t + lane % 16, warp * own_words + 2 * s + lane / 16));
#pragma unroll
          for (int j = 0; j < 2 * tiles; ++j) mma_bf16(own[j], a, b[s][j][0], b[s][j][1]);
        }
#pragma unroll
        for (int j = 0; j < 2 * tiles; ++j)
#pragma unroll
          for (int half = 0; half < 2; ++half)
            *reinterpret_cast<float2*>(&shares[(warp * L::rows + t + lane / 4 + 8 * half) * L::ranks + 8 * j + lane % 4 * 2]) = {
                own[j][2 * half], own[j][2 * half + 1]};
      }
    }
    if constexpr (by_rows) {
      __syncthreads();
      for (int i = id; i < L::rows * L::ranks; i += threads) {
        const int64_t t = step * L::rows + i / L::ranks;
        float sum = 0;
#pragma unroll
        for (int w = 0; w < warps; ++w) sum += shares[w * L::rows * L::ranks + i];
        if (t < m.rows) sums_by_rows[(own_block * m.rows + t) * v.cols + span.rank0 + i % L::ranks] = sum;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < high; ++i)
#pragma unroll
    for (int j = 0; j < 2 * tiles; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int c = c0 + columns / warps * warp + 16 * i + lane / 4 + 8 * half;
        if (c >= span.count) continue;
        *reinterpret_cast<float2*>(&sums_by_columns[(blockIdx.y * m.cols + span.first + c) * L::ranks + 8 * j + lane % 4 * 2]) = {
            sums[i][j][2 * half], sums[i][j][2 * half + 1]};
      }
}

/// The span that one of all ranks belongs to.
__device__ __forceinline__ const Span& with_rank(const Spans& spans, int rank) {
  int which = 0;
  while (which + 1 < spans.count && rank >= spans.of[which + 1].rank0) ++which;
  return spans.of[which];
}

/// y [T, ranks of all] from the parts of each span's blocks, which `columns` divide.
__global__ void add_rows(Spans spans, const float* sums, NarrowView y, int columns) {
  const int64_t i = int64_t(blockIdx.x) * 128 + threadIdx.x;
  if (i >= y.rows * y.cols / 2) return;
  const int rank = int(i % (y.cols / 2)) * 2;
  const int blocks = (with_rank(spans, rank).count + columns - 1) / columns;
  const float* const from = sums + 2 * i;
  *reinterpret_cast<uint32_t*>(y.data + 2 * i) =
      pack_bf16(with_parts(0, from, y.rows * y.cols, blocks), with_parts(0, from + 1, y.rows * y.cols, blocks));
}

/// A span's gradient [count, rank], or where it is `turned` [rank, count], += scale times the sum of the parts [parts, all, ranks] of it.
__global__ void add_gradients(Spans spans, const float* sums, int parts, int64_t all, int ranks, bool turned) {
  const Span span = spans.of[blockIdx.y];
  const int64_t i = int64_t(blockIdx.x) * 128 + threadIdx.x, c = i / span.rank, r = i % span.rank;
  if (c >= span.count) return;
  span.gradient[turned ? r * span.count + c : i] +=
      span.scale * with_parts(0, sums + (span.first + c) * ranks + (turned ? span.rank0 : 0) + r, all * ranks, parts);
}

/// a's rows one behind the other as bf16, zeros where a span has fewer ranks than tiles have.
__global__ void pack_ranks(Spans spans, NarrowView y) {
  const int64_t k = int64_t(blockIdx.x) * 128 + threadIdx.x;
  const int rank = int(blockIdx.y);
  if (k >= y.stride) return;
  const Span& span = with_rank(spans, rank);
  const int r = rank - span.rank0;
  y.row(rank)[k] = uint16_t(pack_bf16(r < span.rank && k < y.cols ? span.b[r * y.cols + k] : 0, 0));
}

/// A weight in memory that somebody else gives back.
struct Borrowed : DeviceWeight {
  ~Borrowed() override { values = nullptr; }
};

int tiles_of(int64_t rank) { return int(rank + 15) / 16; }

/// Of parts that have most_spans and most_ranks together at most.
void run(Arguments& args, const NarrowView& dy, const NarrowView& x, const LowRankBackwardArgs::Part* parts, int count) {
  const int64_t T = dy.rows, K = x.cols;
  Spans by_a = {}, by_b = {};
  int ranks = 0;
  for (int i = 0; i < count; ++i) {
    const LowRankBackwardArgs::Part& part = parts[i];
    const int rank = int(part.rank);
    by_a.of[i] = {0, int(K), 0, ranks, rank, part.scale, args.in(part.a, rank * K), args.inout(part.da, rank * K)};
    by_b.of[i] = {
        int(part.first), int(part.rows), 0, ranks, rank, part.scale, args.in(part.b, part.rows * rank), args.inout(part.db, part.rows * rank)};
    ranks += 16 * tiles_of(rank);
  }
  by_a.count = by_b.count = count;
  const auto narrow = [&](int64_t rows, int64_t cols) -> NarrowView { return {args.scratch<uint16_t>(rows * cols), rows, cols, cols}; };
  const auto most = [](const Spans& spans, const auto& of) {
    int64_t out = 0;
    for (int i = 0; i < spans.count; ++i) out = std::max<int64_t>(out, of(spans.of[i]));
    return out;
  };

  // t = x a^T
  Borrowed weight;
  const NarrowView packed = narrow(ranks, K), t = narrow(T, ranks), u = narrow(T, ranks);
  weight.format = WeightFormat::bf16, weight.rows = ranks, weight.cols = weight.stride = K, weight.values = packed.data;
  launch(args.device, pack_ranks, dim3(blocks(K, 128), unsigned(ranks)), dim3(128), by_a, packed);
  Epilogue epilogue{};
  epilogue.by_four = true, epilogue.narrow_y = t;
  multiply_by_warpgroups(args, x, weight, epilogue);

  // u = dy b and dy^T t, of the spans with so many tiles at a time; some blocks for every multiprocessor.
  const auto stripes_of = [&](int blocks, int rows) {
    return int(std::clamp<int64_t>(2 * args.device.multiprocessors / blocks, 1, std::max<int64_t>(1, T / rows)));
  };
  constexpr int wide = 512, small = 128;
  float* const by_rows = args.scratch<float>(most(by_b, [](const Span& s) { return (s.count + wide - 1) / wide; }) * T * ranks);
  const auto for_tiles = [&](auto tiles) {
    Spans some = {};
    int all = 0;
    for (int i = 0; i < count; ++i) {
      if (tiles_of(by_b.of[i].rank) != tiles) continue;
      some.of[some.count] = by_b.of[i];
      some.of[some.count++].block = all;
      all += int(blocks(by_b.of[i].count, wide));
    }
    if (all == 0) return;
    using L = Layout<tiles, wide, true>;
    const int stripes = stripes_of(all, L::rows);
    float* const sums = args.scratch<float>(stripes * dy.cols * L::ranks);
    launch_shared(args.device, low_rank_columns<tiles, wide, true>, dim3(unsigned(all), unsigned(stripes)), dim3(threads), L::shared, some, dy, t,
                  sums, by_rows);
    const int64_t numbers = most(some, [](const Span& s) { return int64_t(s.count) * s.rank; });
    launch(args.device, add_gradients, dim3(blocks(numbers, 128), unsigned(some.count)), dim3(128), some, static_cast<const float*>(sums), stripes,
           dy.cols, int(L::ranks), false);
  };
  for_tiles(std::integral_constant<int, 1>());
  for_tiles(std::integral_constant<int, 2>());
  launch(args.device, add_rows, dim3(blocks(T * ranks / 2, 128)), dim3(128), by_b, static_cast<const float*>(by_rows), u, int(wide));

  // x^T u
  Spans whole = {};
  whole.of[0].count = int(K), whole.count = 1;
  const auto for_ranks = [&](auto tiles) {
    using L = Layout<tiles, small, false>;
    const int all = int(blocks(K, small)), stripes = stripes_of(all, L::rows);
    float* const sums = args.scratch<float>(stripes * K * ranks);
    launch_shared(args.device, low_rank_columns<tiles, small, false>, dim3(unsigned(all), unsigned(stripes)), dim3(threads), L::shared, whole, x, u,
                  sums, static_cast<float*>(nullptr));
    const int64_t numbers = most(by_a, [](const Span& s) { return int64_t(s.count) * s.rank; });
    launch(args.device, add_gradients, dim3(blocks(numbers, 128), unsigned(count)), dim3(128), by_a, static_cast<const float*>(sums), stripes, K,
           ranks, true);
  };
  switch (ranks / 16) {
    case 1: return for_ranks(std::integral_constant<int, 1>());
    case 2: return for_ranks(std::integral_constant<int, 2>());
    case 3: return for_ranks(std::integral_constant<int, 3>());
    default: return for_ranks(std::integral_constant<int, 4>());
  }
}

}  // namespace

void low_rank_backward(Context& context, const LowRankBackwardArgs& a) {
  Arguments args(context);
  const NarrowView dy = args.in(a.dy), x = args.in(a.x);
  if (dy.rows == 0) return;
  for (size_t first = 0; first < a.parts.size();) {
    size_t end = first;
    for (int ranks = 0; end < a.parts.size() && end - first < most_spans; ++end)
      if ((ranks += 16 * tiles_of(a.parts[end].rank)) > most_ranks) break;
    run(args, dy, x, a.parts.data() + first, int(end - first));
    first = end;
  }
}

}  // namespace conan::cuda
