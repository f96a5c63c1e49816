// Sixteen floats in a register: AVX-512 F/BW/DQ/VL.
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstdint>

namespace conan::cpu::CONAN_ISA {

struct V {
  using F = __m512;
  static constexpr int W = 16;
  static __mmask16 first(int n) { return n >= 16 ? __mmask16(0xffff) : __mmask16((1u << n) - 1); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static void store_n(float* p, F x, int n) { _mm512_mask_storeu_ps(p, first(n), x); }
  static F set(float x) { return _mm512_set1_ps(x); }
  static F zero() { return _mm512_setzero_ps(); }
  static constexpr bool kScaleSaturates = true;  // scale2 takes any n
  static F iota() { return _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  /// Where one of them is NaN the second operand comes out, here and in min.
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F abs(F x) { return _mm512_abs_ps(x); }
  static F round(F x) { return _mm512_roundscale_ps(x, 8); }
  static F scale2(F x, F n) { return _mm512_scalef_ps(x, n); }  // x * 2^n, n whole
  static F copy_sign(F magnitude, F sign) { return _mm512_or_ps(magnitude, _mm512_and_ps(sign, _mm512_set1_ps(-0.f))); }
  /// a >= b ? x : y
  static F where_ge(F a, F b, F x, F y) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GE_OQ), y, x); }
  static float sum(F x) { return _mm512_reduce_add_ps(x); }
  static float largest(F x) { return _mm512_reduce_max_ps(x); }

  // 16-bit weights widened. The two vectors of a panel row share the words: low halves, then high halves (bf16).
  static void load_bf16_pair(const uint16_t* p, F& low, F& high) {
    __m512i words = _mm512_loadu_si512(p);
    low = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
    high = _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(int(0xffff0000))));
  }
  static F load_f16(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static F load_bf16(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
  }

  // int8 weights, pairs along K: sum += a0 * b[2j] + a1 * b[2j + 1] per lane j
  using I = __m512i;
  static I zero_i() { return _mm512_setzero_si512(); }
  static I set_i(uint32_t x) { return _mm512_set1_epi32(int(x)); }
  static I load_i8_pairs(const int8_t* p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static I madd(I sum, I a, I b) { return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b)); }
  static void store_i(void* p, I x) { _mm512_storeu_si512(p, x); }
  static I load_i(const void* p) { return _mm512_loadu_si512(p); }
  static I sub_i(I a, I b) { return _mm512_sub_epi32(a, b); }
  static F to_float(I x) { return _mm512_cvtepi32_ps(x); }
  /// Rounds to whole numbers and stores the low bits.
  static void store_i16(int16_t* p, F x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(x))); }
  static void store_u8(uint8_t* p, F x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x))); }

  /// rows[i] becomes column i.
  static void transpose(F (&r)[16]) {
    F t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4) {
      for (int j = 0; j < 2; ++j) {
        __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + 2 + j]);
        r[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
        r[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < 4; ++i) {  // r[4 * g + i]: lane block l holds column 4 l + i of rows 4 g .. 4 g + 3
      F a = _mm512_shuffle_f32x4(r[i], r[4 + i], 0x88), b = _mm512_shuffle_f32x4(r[i], r[4 + i], 0xdd);
      F c = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0x88), d = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0xdd);
      t[i] = _mm512_shuffle_f32x4(a, c, 0x88);
      t[8 + i] = _mm512_shuffle_f32x4(a, c, 0xdd);
      t[4 + i] = _mm512_shuffle_f32x4(b, d, 0x88);
      t[12 + i] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) r[i] = t[i];
  }
};

}  // namespace conan::cpu::CONAN_ISA
