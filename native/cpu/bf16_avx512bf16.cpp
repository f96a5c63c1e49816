// bf16 weights and activations by vdpbf16ps (two products per lane and instruction, sums in f32): matrix
// multiplication, and attention with queries, keys, probabilities and values as pairs of bf16.
#define CONAN_ISA avx512bf16
#define CONAN_TILE_ROWS 14
#define CONAN_LOOKUP16
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "cpu/kernels.h"
#include "cpu/simd_avx512.h"
#include "cpu/math.inl"
#include "cpu/tile.inl"
#include "cpu/gemm.inl"
#include "cpu/tile_dot.inl"
#include "cpu/attention.inl"

namespace conan::cpu::avx512bf16 {

struct Bf16Dot {
  using Sum = __m512;
  static Sum zero() { return _mm512_setzero_ps(); }
  static Sum dot(Sum sum, __m512i a, __m512i b) { return _mm512_dpbf16_ps(sum, __m512bh(a), __m512bh(b)); }
  static void store(void* p, Sum x) { _mm512_storeu_ps(p, x); }
};

static void convert(const float* x, int64_t k, uint32_t* words, float*) {
  int64_t i = 0;
  for (; i + 32 <= k; i += 32) _mm512_storeu_si512(words + i / 2, __m512i(_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + i + 16), _mm512_loadu_ps(x + i))));
  for (; i < k; i += 2) words[i / 2] = f32_to_bf16(x[i]) | (i + 1 < k ? uint32_t(f32_to_bf16(x[i + 1])) << 16 : 0);
}

/// Words of two k turn with their columns; what lies in one word then are two columns.
static void turn_pairs(const void* in, void* out) {
  alignas(64) static constexpr uint16_t kLow[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                    8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(kLow), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  const uint32_t* x = static_cast<const uint32_t*>(in);
  uint32_t* y = static_cast<uint32_t*>(out);
  for (int c = 0; c < NR; c += W) {
    F block[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) block[i] = _mm512_castsi512_ps(_mm512_loadu_si512(x + i * NR + c));
    V::transpose(block);  // row i: column c + i, all k
#pragma GCC unroll 8
    for (int i = 0; i < W; i += 2) {
      const __m512i even = _mm512_castps_si512(block[i]), odd = _mm512_castps_si512(block[i + 1]);
      uint32_t* to = y + (c + i) / 2 * NR;
      _mm512_storeu_si512(to, _mm512_permutex2var_epi16(even, low, odd));
      _mm512_storeu_si512(to + W, _mm512_permutex2var_epi16(even, high, odd));
    }
  }
}

/// Word i: `low`'s element i as bf16 in the low half, `high`'s in the high half.
static inline __m512i pairs(__m512 low, __m512 high) {
  alignas(64) static constexpr uint16_t kOrder[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), __m512i(_mm512_cvtne2ps_pbh(high, low)));
}

static void pack_pairs(const float* x, int64_t stride, int64_t rows, int columns, void* panel) {
  uint32_t* out = static_cast<uint32_t*>(panel);
  for (int64_t t = 0; t < rows; t += 2, x += 2 * stride, out += NR)
    for (int c = 0; c < NR; c += W) {
      const int n = std::clamp(columns - c, 0, W);
      const F low = n > 0 ? load_some(x + c, n) : V::zero(), high = n > 0 && t + 1 < rows ? load_some(x + stride + c, n) : V::zero();
      _mm512_storeu_si512(out + c, pairs(low, high));
    }
}

static constexpr GemmKernel make_kernel() {
  GemmKernel kernel = dot_kernel<Bf16Dot>("vdpbf16ps", Layout::bf16_pairs, convert, std::make_integer_sequence<int, kMaxTileRows>{});
  kernel.turn = turn_pairs;
  kernel.pack_rows = pack_pairs;
  return kernel;
}

struct Bf16Math {
  static constexpr int kGroup = 2;
  using Panel = uint32_t;

  template <int kRows, bool kAcross, bool kWide>
  static constexpr TileKernel tile() {
    constexpr int vectors = kWide ? 2 : 1;
    return tile_dot<kRows, Bf16Dot, kAcross, vectors>;
  }
  static void store(Panel* out, F row, F next) { _mm512_storeu_si512(out, pairs(row, next)); }
  /// 2^x for x <= 0 from a cubic, relative error 8e-5: what is rounded to bf16 next needs no more.
  static F exp2(F x) {
    F f = _mm512_reduce_ps(x, 0x09);  // x - floor(x); scalef takes the floor by itself
    F p = V::fma(V::set(0.07802452f), f, V::set(0.226067159f));
    p = V::fma(p, f, V::set(0.695833539f));
    p = V::fma(p, f, V::set(0.999925219f));
    return _mm512_scalef_ps(p, x);
  }
  /// Each key's channels in pairs.
  static const uint32_t* keys(const AttentionPanel& a, int64_t first, int64_t count, uint32_t* rows, bool converted, int64_t& stride) {
    stride = (a.head_dim + 1) / 2;
    if (converted) return rows;
    for (int64_t i = 0; i < count; ++i) convert(a.k + (first + i) * a.k_stride, a.head_dim, rows + i * stride, nullptr);
    return rows;
  }
  /// Pairs of neighbouring keys' values, channel by channel.
  static const uint32_t* values(const AttentionPanel& a, int64_t first, int64_t count, uint32_t* rows, bool converted, int64_t& stride) {
    stride = a.head_dim;
    if (converted) return rows;
    for (int64_t i = 0; i < count; i += 2) {
      const float* v = a.v + (first + i) * a.v_stride;
      for (int d = 0; d < a.head_dim; d += W) {
        const int n = std::min(W, a.head_dim - d);
        const __m512i words = pairs(load_some(v + d, n), i + 1 < count ? load_some(v + a.v_stride + d, n) : V::zero());
        _mm512_mask_storeu_epi32(rows + i / 2 * stride + d, V::first(n), words);
      }
    }
    return rows;
  }
};

}  // namespace conan::cpu::avx512bf16

constinit const conan::cpu::GemmKernel conan::cpu::gemm_bf16_avx512bf16 = conan::cpu::avx512bf16::make_kernel();

void conan::cpu::attention_avx512bf16(const AttentionPanel& a) { conan::cpu::avx512bf16::attention_panel<conan::cpu::avx512bf16::Bf16Math>(a); }

void conan::cpu::finish_avx512bf16(const void* tile, int rows, int64_t panel, const Finish& f) {
  conan::cpu::avx512bf16::finish(tile, rows, panel, f);
}
