// Four floats in a register: NEON as every 64-bit ARM CPU has it, with FMA and half precision.
#pragma once
#include <arm_neon.h>

#include <cmath>
#include <cstdint>

namespace conan::cpu::CONAN_ISA {

struct V {
  using F = float32x4_t;
  static constexpr int W = 4;
  static F load(const float* p) { return vld1q_f32(p); }
  static F load_n(const float* p, int n) {
    float some[W] = {};
    for (int i = 0; i < n && i < W; ++i) some[i] = p[i];
    return load(some);
  }
  static void store(float* p, F x) { vst1q_f32(p, x); }
  static void store_n(float* p, F x, int n) {
    float all[W];
    store(all, x);
    for (int i = 0; i < n && i < W; ++i) p[i] = all[i];
  }
  static F set(float x) { return vdupq_n_f32(x); }
  static F zero() { return set(0); }
  static constexpr bool kScaleSaturates = false;  // scale2 takes any n
  static F iota() { return F{0, 1, 2, 3}; }
  static F add(F a, F b) { return vaddq_f32(a, b); }
  static F sub(F a, F b) { return vsubq_f32(a, b); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F div(F a, F b) { return vdivq_f32(a, b); }
  static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static F max(F a, F b) { return vmaxq_f32(a, b); }
  static F min(F a, F b) { return vminq_f32(a, b); }
  static F abs(F x) { return vabsq_f32(x); }
  static F round(F x) { return vrndnq_f32(x); }
  static F scale2(F x, F n) {  // n is within -126 .. 127 here
    return vmulq_f32(x, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23)));
  }
  static F copy_sign(F magnitude, F sign) { return vbslq_f32(vdupq_n_u32(0x80000000u), sign, magnitude); }
  static F where_ge(F a, F b, F x, F y) { return vbslq_f32(vcgeq_f32(a, b), x, y); }
  static float sum(F x) { return vaddvq_f32(x); }
  static float largest(F x) { return vmaxvq_f32(x); }

  static void load_bf16_pair(const uint16_t* p, F& low, F& high) {
    const uint32x4_t words = vreinterpretq_u32_u16(vld1q_u16(p));
    low = vreinterpretq_f32_u32(vshlq_n_u32(words, 16));
    high = vreinterpretq_f32_u32(vandq_u32(words, vdupq_n_u32(0xffff0000u)));
  }
  static F load_f16(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
  static F load_bf16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }

  using I = int32x4_t;
  static I zero_i() { return vdupq_n_s32(0); }
  static I set_i(uint32_t x) { return vdupq_n_s32(int32_t(x)); }
  static I load_i8_pairs(const int8_t* p) { return vreinterpretq_s32_s16(vmovl_s8(vld1_s8(p))); }
  static I madd(I sum, I a, I b) {
    const int16x8_t x = vreinterpretq_s16_s32(a), y = vreinterpretq_s16_s32(b);
    return vaddq_s32(sum, vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y)));
  }
  static void store_i(void* p, I x) { vst1q_s32(static_cast<int32_t*>(p), x); }
  static I load_i(const void* p) { return vld1q_s32(static_cast<const int32_t*>(p)); }
  static I sub_i(I a, I b) { return vsubq_s32(a, b); }
  static F to_float(I x) { return vcvtq_f32_s32(x); }
  static void store_i16(int16_t* p, F x) { vst1_s16(p, vqmovn_s32(vcvtnq_s32_f32(x))); }

  static void transpose(F (&r)[W]) {
    const F a = vtrn1q_f32(r[0], r[1]), b = vtrn2q_f32(r[0], r[1]), c = vtrn1q_f32(r[2], r[3]), d = vtrn2q_f32(r[2], r[3]);
    const auto pairs = [](F x) { return vreinterpretq_f64_f32(x); };
    const auto floats = [](float64x2_t x) { return vreinterpretq_f32_f64(x); };
    r[0] = floats(vtrn1q_f64(pairs(a), pairs(c)));
    r[1] = floats(vtrn1q_f64(pairs(b), pairs(d)));
    r[2] = floats(vtrn2q_f64(pairs(a), pairs(c)));
    r[3] = floats(vtrn2q_f64(pairs(b), pairs(d)));
  }
};

}  // namespace conan::cpu::CONAN_ISA
