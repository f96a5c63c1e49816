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
  __m512 most = _mm512_setzero_ps();
  for (int64_t i = 0; i < k; i += 16) most = _mm512_max_ps(most, V::abs(V::load_n(x + i, int(k - i < 16 ? k - i : 16))));
  const float largest = V::largest(most);
  *scale = largest / 127;
  const __m512 inverse = V::set(largest > 0 ? 127 / largest : 0), shift = V::set(128);
  uint8_t* out = reinterpret_cast<uint8_t*>(words);
  int64_t i = 0;
  for (; i + 16 <= k; i += 16) V::store_u8(out + i, V::fma(V::load(x + i), inverse, shift));
  if (i < k) {
    uint8_t rest[16];
    V::store_u8(rest, V::fma(V::load_n(x + i, int(k - i)), inverse, shift));
    std::memcpy(out + i, rest, size_t(k - i + 3) / 4 * 4);
  }
}

}  // namespace conan::cpu::avx512vnni

const conan::cpu::GemmKernel conan::cpu::gemm_i8_avx512vnni = conan::cpu::avx512vnni::dot_kernel<conan::cpu::avx512vnni::I8Dot>(
    "vpdpbusd", conan::cpu::Layout::i8_quads, conan::cpu::avx512vnni::convert, std::make_integer_sequence<int, conan::cpu::kMaxTileRows>{});
