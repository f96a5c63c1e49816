// int8 weights by vpdpbusd: four products per lane and instruction. Activations are quantised per row to unsigned
// bytes (value + 128); the 128 times the sum of the weights that this adds is taken off at the end (`compensation`).
#define CONAN_ISA avx512vnni
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "cpu/kernels.h"
#include "cpu/simd_avx512.h"
#include "cpu/math.inl"
#include "cpu/tile.inl"
#include "cpu/tile_dot.inl"

namespace conan::cpu::avx512vnni {

struct I8Dot {
  using Sum = __m512i;
  static Sum zero() { return _mm512_setzero_si512(); }
  static Sum dot(Sum sum, __m512i a, __m512i b) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));  // g++ 12 spills the sums of the intrinsic: 2.3x slower
    return sum;
  }
  static void store(void* p, Sum x) { _mm512_storeu_si512(p, x); }
};

static void convert(const float* x, int64_t k, uint32_t* words, float* scale) {
  __m512 most[4] = {V::zero(), V::zero(), V::zero(), V::zero()};  // four chains
  int64_t i = 0;
  for (; i + 64 <= k; i += 64)
    for (int j = 0; j < 4; ++j) most[j] = V::max(most[j], V::abs(V::load(x + i + 16 * j)));
  for (; i < k; i += 16) most[0] = V::max(most[0], V::abs(load_some(x + i, int(std::min<int64_t>(16, k - i)))));
  const float largest = V::largest(V::max(V::max(most[0], most[1]), V::max(most[2], most[3])));
  *scale = largest / 127;
  const __m512 inverse = V::set(largest > 0 ? 127 / largest : 0), shift = V::set(128);
  auto quantised = [&](int64_t at) { return _mm512_cvtps_epi32(V::fma(V::load(x + at), inverse, shift)); };
  // Packing goes by blocks of 128 bits; this order puts the words right again.
  const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
  uint8_t* out = reinterpret_cast<uint8_t*>(words);
  for (i = 0; i + 64 <= k; i += 64) {
    const __m512i low = _mm512_packus_epi32(quantised(i), quantised(i + 16)), high = _mm512_packus_epi32(quantised(i + 32), quantised(i + 48));
    _mm512_storeu_si512(out + i, _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high)));
  }
  for (; i < k; i += 16) {
    const int n = int(std::min<int64_t>(16, k - i));
    uint8_t rest[16];
    V::store_u8(rest, V::fma(load_some(x + i, n), inverse, shift));
    std::memcpy(out + i, rest, size_t(n + 3) / 4 * 4);
  }
}

static constexpr GemmKernel kernel() {
  GemmKernel out = dot_kernel<I8Dot>("vpdpbusd", Layout::i8_quads, convert, std::make_integer_sequence<int, kMaxTileRows>{});
  out.shifted = true;
  return out;
}

}  // namespace conan::cpu::avx512vnni

constinit const conan::cpu::GemmKernel conan::cpu::gemm_i8_avx512vnni = conan::cpu::avx512vnni::kernel();
