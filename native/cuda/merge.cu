// The last pass of merges, from bf16 as it is stored to bf16 (merge/kernels.inl, stream_in): the same products and sums, never contracted, so
// that a GPU writes the bytes that a CPU would.
#include "cuda/cuda.h"

namespace conan::cuda {

namespace {

constexpr int most_parents = MergeArgs::kMaxParents, each = 8,  // numbers of a thread at a time, 16 bytes of every parent
    turns = 8;

__device__ __forceinline__ float product(float a, float b) {
#ifdef __CUDACC__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
__device__ __forceinline__ float sum_of(float a, float b) {
#ifdef __CUDACC__
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}
/// Number i of some pairs.
__device__ __forceinline__ float wide(const uint32_t (&pairs)[each / 2], int i) {
  const uint32_t bits = i % 2 ? pairs[i / 2] & 0xffff0000u : pairs[i / 2] << 16;
  float out;
  memcpy(&out, &bits, 4);
  return out;
}
__device__ __forceinline__ uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

struct Merge {
  const uint16_t* base;
  const uint16_t* x[most_parents];
  float coefficients[most_parents], weights[most_parents];
  uint32_t from[most_parents], range[most_parents];  // twice the magnitude of what counts, and how much more it may be
  int parents;
  bool normalize;
  float scale;
  uint16_t* out;
};

/// Sums of squares by parent, and how many entries' task vectors point both ways, of each block. A thread's eight squares are added in f32:
/// doubles are slow, and few enough of them are as good.
template <int room, bool sparse, bool elect>
__global__ void __launch_bounds__(256) merge_bf16(Merge m, int64_t count, double* sums) {
  __shared__ double parts[8];
  double squares[room + 1] = {};
  for (int turn = 0; turn < turns; ++turn) {
    const int64_t first = ((int64_t(blockIdx.x) * turns + turn) * 256 + threadIdx.x) * each;
    if (first >= count) break;
    const int own = int(count - first < each ? count - first : each);
    uint32_t words[room][each / 2], base[each / 2] = {}, out[each / 2];
    const auto load = [&](uint32_t(&to)[each / 2], const uint16_t* from) {
      if (own == each && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
        const int4 four = *reinterpret_cast<const int4*>(from);
        to[0] = uint32_t(four.x), to[1] = uint32_t(four.y), to[2] = uint32_t(four.z), to[3] = uint32_t(four.w);
        return;
      }
#pragma unroll
      for (int i = 0; i < each / 2; ++i) to[i] = (2 * i < own ? from[2 * i] : 0u) | (2 * i + 1 < own ? uint32_t(from[2 * i + 1]) << 16 : 0u);
    };
    float before = 0, own_squares[room] = {};  // the first number of a pair
    int torn = 0;
    if (m.base) load(base, m.base + first);
      // Parents that are none have nothing but the base's numbers: their task vectors are zeros, which change no sum.
#pragma unroll
    for (int p = 0; p < room; ++p) {
      if (p < m.parents) load(words[p], m.x[p] + first);
      else memcpy(words[p], base, sizeof base);
    }
#pragma unroll
    for (int i = 0; i < each; ++i) {
      float d[room], sum = 0;
      bool up = false, down = false;
      const float start = m.base ? wide(base, i) : 0;
#pragma unroll
      for (int p = 0; p < room; ++p) {
        float v = wide(words[p], i);
        if (m.base) v = sum_of(v, -start);
        own_squares[p] += v * v;
        up |= v > 0, down |= v < 0;
        if (sparse && 2 * bits_of(v) - m.from[p] > m.range[p]) v = 0;  // twice: without the sign
        d[p] = product(v, m.coefficients[p]);
        sum = sum_of(sum, d[p]);
      }
      torn += up && down;
      if (elect) {
        const float sign = sum < 0 ? -1.f : 1.f;
        float total = 0, agreed = 0;
#pragma unroll
        for (int p = 0; p < room; ++p)
          if (product(d[p], sign) > 0) total = sum_of(total, d[p]), agreed = sum_of(agreed, m.weights[p]);
        sum = !m.normalize ? total : total / (fabsf(agreed) < 1e-8f ? 1 : agreed);
      }
      const float merged = sum_of(start, product(m.scale, sum));
      if (i % 2) out[i / 2] = pack_bf16(before, merged);
      before = merged;
    }
    if (own == each && reinterpret_cast<uintptr_t>(m.out + first) % 16 == 0) {
      *reinterpret_cast<int4*>(m.out + first) = {int(out[0]), int(out[1]), int(out[2]), int(out[3])};
    } else {
#pragma unroll
      for (int i = 0; i < each; ++i)
        if (i < own) m.out[first + i] = uint16_t(out[i / 2] >> (i % 2 * 16));
    }
#pragma unroll
    for (int p = 0; p < room; ++p) squares[p] += double(own_squares[p]);
    squares[room] += torn;
  }
  for (int p = 0; p <= room; ++p) {
    if (p < room && p >= m.parents) continue;
    const double sum = warp_sum(squares[p]);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x > 0) continue;
    double all = 0;
    for (const double part : parts) all += part;
    sums[int64_t(p < room ? p : m.parents) * gridDim.x + blockIdx.x] = all;
  }
}

/// A block adds up the blocks of one sum, in their order; lanes take every 32nd.
__global__ void add_blocks(const double* sums, int64_t blocks, double* out) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < blocks; i += 32) sum += sums[blockIdx.x * blocks + i];
  sum = warp_sum(sum);
  if (threadIdx.x == 0) out[blockIdx.x] += sum;
}

template <bool sparse, bool elect>
auto best(int parents) {
  return parents <= 1   ? merge_bf16<1, sparse, elect>
         : parents <= 2 ? merge_bf16<2, sparse, elect>
         : parents <= 4 ? merge_bf16<4, sparse, elect>
                        : merge_bf16<most_parents, sparse, elect>;
}

}  // namespace

void merge(Context& context, const MergeArgs& a) {
  Arguments args(context);
  if (a.count == 0) return;
  Merge m = {};
  m.base = args.in(a.base, a.count);
  m.parents = a.parents, m.normalize = a.normalize, m.scale = float(a.scale);
  for (int p = 0; p < a.parents; ++p) {
    m.x[p] = args.in(a.x[p], a.count);
    m.coefficients[p] = float(a.coefficients[p]), m.weights[p] = float(a.weights[p]);
    if (!a.from) continue;
    const uint32_t to = std::min(a.to[p], 0x7fffffffu);
    const bool some = a.from[p] <= to;  // an odd number is no double
    m.from[p] = some ? 2 * a.from[p] : ~0u, m.range[p] = some ? 2 * (to - a.from[p]) : 0;
  }
  m.out = args.out(a.out, a.count);
  const unsigned grid = blocks(a.count, 256 * each * turns);
  double* sums = args.scratch<double>(int64_t(grid) * (a.parents + 1));
  const auto kernel = !a.from   ? a.elect ? best<false, true>(a.parents) : best<false, false>(a.parents)
                        : a.elect ? best<true, true>(a.parents)
                                : best<true, false>(a.parents);
  launch(args.device, kernel, dim3(grid), dim3(256), m, a.count, sums);
  launch(args.device, add_blocks, dim3(unsigned(a.parents + 1)), dim3(32), static_cast<const double*>(sums), int64_t(grid),
         args.inout(a.sums, a.parents + 1));
}

}  // namespace conan::cuda
