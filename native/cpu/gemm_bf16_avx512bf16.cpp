// bf16 weights and activations by vdpbf16ps: two products per lane and instruction, sums in f32.
#define CONAN_ISA avx512bf16
#include <cstring>
#include <utility>

#include "cpu/kernels.h"
#include "cpu/simd_avx512.h"
#include "cpu/tile_dot.inl"

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

}  // namespace conan::cpu::avx512bf16

const conan::cpu::GemmKernel conan::cpu::gemm_bf16_avx512bf16 = conan::cpu::avx512bf16::dot_kernel<conan::cpu::avx512bf16::Bf16Dot>(
    "vdpbf16ps", conan::cpu::Layout::bf16_pairs, conan::cpu::avx512bf16::convert, std::make_integer_sequence<int, conan::cpu::kMaxTileRows>{});
