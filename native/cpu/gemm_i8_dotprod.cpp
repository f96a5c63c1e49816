// int8 weights by sdot: four products per lane and instruction, of signed bytes.
#if defined(__aarch64__)
#define CONAN_ISA dotprod
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "cpu/kernels.h"
#include "cpu/simd_neon.h"
#include "cpu/math.inl"
#include "cpu/tile.inl"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#endif

namespace conan::cpu::dotprod {

/// Not by a flag of the compiler, of which each has its own.
static inline V::I dot(V::I sum, int8x16_t a, int8x16_t b) {
  asm(".arch armv8.2-a+dotprod\n\tsdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(a), "w"(b));
  return sum;
}

template <int kRows>
static void tile(const uint32_t* a, int64_t stride, const void* panel, int64_t steps, void* out) {
  V::I sum[kRows][2];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) sum[i][0] = sum[i][1] = V::zero_i();
  Rows<kRows, false> rows(a, stride);
  const int8_t* b = static_cast<const int8_t*>(panel);
  for (int64_t k = 0; k < steps; ++k, b += 4 * NR, rows.step()) {
    const int8x16_t b0 = vld1q_s8(b), b1 = vld1q_s8(b + 4 * W);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const int8x16_t x = vreinterpretq_s8_s32(V::set_i(*rows.at(i)));
      sum[i][0] = dot(sum[i][0], b0, x);
      sum[i][1] = dot(sum[i][1], b1, x);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < 2; ++j) V::store_i(static_cast<int32_t*>(out) + i * NR + j * W, sum[i][j]);
}

/// Symmetric quantisation of one row to bytes, padded with zeros to whole words.
static void convert(const float* x, int64_t k, uint32_t* words, float* scale) {
  F most = V::zero();
  for (int64_t i = 0; i < k; i += W) most = V::max(most, V::abs(load_some(x + i, int(std::min<int64_t>(W, k - i)))));
  const float largest = V::largest(most);
  *scale = largest / 127;
  const F inverse = V::set(largest > 0 ? 127 / largest : 0);
  for (int64_t i = 0; i < k; i += W) {
    const int16x4_t narrow = vqmovn_s32(vcvtnq_s32_f32(V::mul(load_some(x + i, int(std::min<int64_t>(W, k - i))), inverse)));
    words[i / W] = vget_lane_u32(vreinterpret_u32_s8(vqmovn_s16(vcombine_s16(narrow, narrow))), 0);
  }
}

template <int... i>
static constexpr GemmKernel kernel(std::integer_sequence<int, i...>) {
  GemmKernel out{"sdot", Layout::i8_quads};
  ((out.tile[i + 1] = tile<i + 1>), ...);
  out.convert = convert;
  return out;
}

}  // namespace conan::cpu::dotprod

#if defined(__clang__)
#pragma clang attribute pop
#endif

constinit const conan::cpu::GemmKernel conan::cpu::gemm_i8_dotprod =
    conan::cpu::dotprod::kernel(std::make_integer_sequence<int, conan::cpu::kNeonTileRows>{});
#endif
