// The last pass of merges, from bf16 as it is stored to bf16 (merge/kernels.inl, stream_in): the same products and sums, never contracted, so
// that a GPU writes the bytes that a CPU would.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "cuda/cuda.h"

namespace conan::cuda {

namespace {

constexpr int most_parents = MergeArgs::kMaxParents, each = 8,  // numbers of a thread at a time, 16 bytes of every parent
    turns = 16;

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
/// pick(x, y, bits of x, bits of y) of both numbers of two pairs.
template <class Pick>
__device__ __forceinline__ uint32_t by_numbers(uint32_t a, uint32_t b, const Pick& pick) {
  const float2 x = unpack_bf16(a), y = unpack_bf16(b);
  return pick(x.x, y.x, a & 0xffff, b & 0xffff) | pick(x.y, y.y, a >> 16, b >> 16) << 16;
}
/// Number i of some pairs.
__device__ __forceinline__ float wide(const uint32_t (&pairs)[each / 2], int i) {
  const float2 both = unpack_bf16(pairs[i / 2]);
  return i % 2 ? both.y : both.x;
}
/// Of two pairs of bf16 the larger numbers, or the smaller ones, and all bits of those that are larger. What is no number loses.
__device__ __forceinline__ uint32_t larger_pair(uint32_t a, uint32_t b) {
#ifdef __CUDACC__
  asm("max.bf16x2 %0, %1, %2;\n" : "=r"(a) : "r"(a), "r"(b));
  return a;
#else
  return by_numbers(a, b, [](float x, float y, uint32_t bits, uint32_t other) { return x > y || y != y ? bits : other; });
#endif
}
__device__ __forceinline__ uint32_t smaller_pair(uint32_t a, uint32_t b) {
#ifdef __CUDACC__
  asm("min.bf16x2 %0, %1, %2;\n" : "=r"(a) : "r"(a), "r"(b));
  return a;
#else
  return by_numbers(a, b, [](float x, float y, uint32_t bits, uint32_t other) { return x < y || y != y ? bits : other; });
#endif
}
__device__ __forceinline__ uint32_t pair_is_larger(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  uint32_t out;
  asm("set.gt.u32.bf16x2 %0, %1, %2;\n" : "=r"(out) : "r"(a), "r"(b));
  return out;
#else
  return by_numbers(a, b, [](float x, float y, uint32_t, uint32_t) { return x > y ? 0xffffu : 0u; });
#endif
}
__device__ __forceinline__ uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

/// a / b rounded to the nearest, as the compiler's division has it, without its question (whose answer costs as much as the rest) whether it is
/// one of the rare cases: b is from 1e-8 to 2^60, a zero or from 2^-60 to 2^60.
constexpr float most_ordinary = 0x1p60f;
constexpr uint32_t least_twice = 2 * 0x21800000u - 1;  // twice the bits of 2^-60, less one
__device__ __forceinline__ float quotient(float a, float b) {
#ifdef __CUDACC__
  float r = reciprocal(b);
  r = fmaf(r, fmaf(-b, r, 1.f), r);
  const float q = a * r;
  return fmaf(r, fmaf(-b, q, a), q);
#else
  return a / b;
#endif
}

/// Which differences count: all; those of at least some magnitude, as TIES has it; those between two.
enum class Counts { all, large, between };

struct Merge {
  const uint16_t* base;
  const uint16_t* x[most_parents];
  float coefficients[most_parents], weights[most_parents];
  float least[most_parents];                         // magnitude of what is large
  uint32_t from[most_parents], range[most_parents];  // twice the magnitude of what lies between, and how much more it may be
  int parents;
  float scale, most_total;  // what quotient() divides; less than zero: nothing
  uint16_t* out;
  bool in_steps;  // all of them begin at multiples of 16 bytes
};

/// Sums of squares by parent, and how many entries' task vectors point both ways, of each block. A thread's eight squares are added in f32:
/// doubles are slow, and few enough of them are as good.
template <int room, Counts counts, bool elect, bool normalize>
__global__ void __launch_bounds__(256, room <= 4 ? 4 : 1) merge_bf16(Merge m, int64_t count, double* sums) {
  double squares[room + 1] = {};
  float weights[room];
  // By way of shared memory, so that registers hold them: from the arguments they would be loaded for every sum.
  __shared__ float shared_weights[room];
  if (threadIdx.x < room) shared_weights[threadIdx.x] = m.weights[threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int p = 0; p < room; ++p) weights[p] = shared_weights[p];
  uint32_t torn = 0;  // of even and of odd numbers, 16 bits each
  for (int turn = 0; turn < turns; ++turn) {
    const int64_t first = ((int64_t(blockIdx.x) * turns + turn) * 256 + threadIdx.x) * each;
    if (first >= count) break;
    const int own = int(count - first < each ? count - first : each);
    uint32_t words[room][each / 2], base[each / 2] = {}, out[each / 2];
    const bool whole = m.in_steps && own == each;
    const auto load = [&](uint32_t(&to)[each / 2], const uint16_t* from) {
      if (whole) {
        const int4 four = *reinterpret_cast<const int4*>(from);
        to[0] = uint32_t(four.x), to[1] = uint32_t(four.y), to[2] = uint32_t(four.z), to[3] = uint32_t(four.w);
        return;
      }
#pragma unroll
      for (int i = 0; i < each / 2; ++i) to[i] = (2 * i < own ? from[2 * i] : 0u) | (2 * i + 1 < own ? uint32_t(from[2 * i + 1]) << 16 : 0u);
    };
    // Parents that are none have nothing but the base's numbers: their task vectors are zeros, which change no sum.
    const auto load_all = [&] {
      if (m.base) load(base, m.base + first);
#pragma unroll
      for (int p = 0; p < room; ++p) {
        if (p < m.parents) load(words[p], m.x[p] + first);
        else memcpy(words[p], base, sizeof base);
      }
    };
    if (whole) load_all();  // apart, so that no load waits for a question
    else load_all();
    float own_squares[room];
    // Differences point the way in which the numbers themselves compare.
#pragma unroll
    for (int i = 0; i < each / 2; ++i) {
      uint32_t most = words[0][i], least = words[0][i];
#pragma unroll
      for (int p = 1; p < room; ++p) most = larger_pair(most, words[p][i]), least = smaller_pair(least, words[p][i]);
      torn += pair_is_larger(most, base[i]) & pair_is_larger(base[i], least) & 0x00010001;
    }
    // Whether a quotient was asked for that quotient() does not have: then all again, with the slow division.
    const auto combine = [&](auto slow) {
      float before = 0, largest = 0;         // the first number of a pair; magnitude
      uint32_t smallest_twice = 0xffffffff;  // less one: zero counts as the largest
#pragma unroll
      for (int p = 0; p < room; ++p) own_squares[p] = 0;
#pragma unroll
      for (int i = 0; i < each; ++i) {
        float d[room], sum = 0;
        bool counted[room];
        const float start = wide(base, i);  // zero where there is no base
#pragma unroll
        for (int p = 0; p < room; ++p) {
          const float v = sum_of(wide(words[p], i), -start);
          own_squares[p] += v * v;
          if constexpr (counts == Counts::large) counted[p] = !(fabsf(v) < m.least[p]);
          else if constexpr (counts == Counts::between) counted[p] = 2 * bits_of(v) - m.from[p] <= m.range[p];  // twice: without the sign
          else counted[p] = true;
          d[p] = product(v, m.coefficients[p]);
          if (counted[p]) sum = sum_of(sum, d[p]);
        }
        if (elect) {
          const float sign = sum < 0 ? -1.f : 1.f;
          float total = 0, agreed = 0;
#pragma unroll
          for (int p = 0; p < room; ++p)
            if (counted[p] && product(d[p], sign) > 0) total = sum_of(total, d[p]), agreed = sum_of(agreed, weights[p]);
          sum = total;
          if (normalize) {
            if (fabsf(agreed) < 1e-8f) agreed = 1;
            if constexpr (slow) {
              sum = total / agreed;
            } else {
              sum = quotient(total, agreed);
              largest = fmaxf(largest, fabsf(total));
              const uint32_t twice = 2 * bits_of(total) - 1;
              smallest_twice = twice < smallest_twice ? twice : smallest_twice;
            }
          }
        }
        const float merged = sum_of(start, product(m.scale, sum));
        if (i % 2) out[i / 2] = pack_bf16(before, merged);
        before = merged;
      }
      return largest > m.most_total || smallest_twice < least_twice;
    };
    if (combine(std::false_type()) && normalize) {
#ifdef __CUDACC__
      // As if the words might be others now: otherwise all that both ways compute would be held in registers for the second.
#pragma unroll
      for (int i = 0; i < each / 2; ++i) {
        asm volatile("" : "+r"(base[i])::"memory");
#pragma unroll
        for (int p = 0; p < room; ++p) asm volatile("" : "+r"(words[p][i])::"memory");
      }
#endif
      combine(std::true_type());
    }
    if (whole) {
      *reinterpret_cast<int4*>(m.out + first) = {int(out[0]), int(out[1]), int(out[2]), int(out[3])};
    } else {
#pragma unroll
      for (int i = 0; i < each; ++i)
        if (i < own) m.out[first + i] = uint16_t(out[i / 2] >> (i % 2 * 16));
    }
#pragma unroll
    for (int p = 0; p < room; ++p) squares[p] += double(own_squares[p]);
  }
  squares[room] = (torn & 0xffff) + (torn >> 16);
  __shared__ double parts[room + 1][8];
#pragma unroll
  for (int p = 0; p <= room; ++p) {
    const double sum = warp_sum(squares[p]);
    if (threadIdx.x % 32 == 0) parts[p][threadIdx.x / 32] = sum;
  }
  __syncthreads();
  const int p = int(threadIdx.x);
  if (p > room || (p < room && p >= m.parents)) return;
  double all = 0;
  for (const double part : parts[p]) all += part;
  sums[int64_t(p < room ? p : m.parents) * gridDim.x + blockIdx.x] = all;
}

/// A block adds up the blocks of one sum, in their order.
__global__ void add_blocks(const double* sums, int64_t blocks, double* out) {
  const double sum = warp_sum_of(sums + blockIdx.x * blocks, blocks);
  if (threadIdx.x == 0) out[blockIdx.x] += sum;
}

template <Counts counts, bool elect, bool normalize>
auto best(int parents) {
  return parents <= 1   ? merge_bf16<1, counts, elect, normalize>
         : parents <= 2 ? merge_bf16<2, counts, elect, normalize>
         : parents <= 4 ? merge_bf16<4, counts, elect, normalize>
                        : merge_bf16<most_parents, counts, elect, normalize>;
}
template <Counts counts>
auto best(const MergeArgs& a) {
  return !a.elect ? best<counts, false, false>(a.parents) : a.normalize ? best<counts, true, true>(a.parents) : best<counts, true, false>(a.parents);
}

}  // namespace

void merge(Context& context, const MergeArgs& a) {
  Arguments args(context);
  if (a.count == 0) return;
  Merge m = {};
  m.base = args.in(a.base, a.count);
  m.parents = a.parents, m.scale = float(a.scale);
  bool large = true;
  double all_weights = 0;
  for (int p = 0; p < a.parents; ++p) {
    all_weights += std::fabs(a.weights[p]);
    m.x[p] = args.in(a.x[p], a.count);
    m.coefficients[p] = float(a.coefficients[p]), m.weights[p] = float(a.weights[p]);
    if (!a.from) continue;
    large &= a.from[p] <= 0x7f800000u && a.to[p] >= 0x7fffffffu;
    std::memcpy(&m.least[p], &a.from[p], sizeof(float));
    const uint32_t to = std::min(a.to[p], 0x7fffffffu);
    const bool some = a.from[p] <= to;  // an odd number is no double
    m.from[p] = some ? 2 * a.from[p] : ~0u, m.range[p] = some ? 2 * (to - a.from[p]) : 0;
  }
  m.most_total = all_weights <= double(most_ordinary) ? most_ordinary : -1;
  m.out = args.out(a.out, a.count);
  const auto begins = [](const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; };
  m.in_steps = begins(m.base) && begins(m.out) && std::all_of(m.x, m.x + a.parents, begins);
  const unsigned grid = blocks(a.count, 256 * each * turns);
  double* sums = args.scratch<double>(int64_t(grid) * (a.parents + 1));
  const auto kernel = !a.from ? best<Counts::all>(a) : large ? best<Counts::large>(a) : best<Counts::between>(a);
  launch(args.device, kernel, dim3(grid), dim3(256), m, a.count, sums);
  launch(args.device, add_blocks, dim3(unsigned(a.parents + 1)), dim3(32), static_cast<const double*>(sums), int64_t(grid),
         args.inout(a.sums, a.parents + 1));
}

}  // namespace conan::cuda
