// Four floats as a plain array: any CPU. The compiler turns the loops into SSE2 or NEON; a hand-written file for an
// instruction set has this shape.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "base/tensor.h"

namespace conan::cpu::CONAN_ISA {

struct V {
  static constexpr int W = 4;
  struct F {
    float v[W];
  };
  template <class Op>
  static F each(const Op& op) {
    F r;
    for (int i = 0; i < W; ++i) r.v[i] = op(i);
    return r;
  }
  static F load(const float* p) {
    return each([&](int i) { return p[i]; });
  }
  static F load_n(const float* p, int n) {
    return each([&](int i) { return i < n ? p[i] : 0.f; });
  }
  static void store(float* p, F x) { std::memcpy(p, x.v, sizeof x.v); }
  static void store_n(float* p, F x, int n) {
    for (int i = 0; i < std::min(n, W); ++i) p[i] = x.v[i];
  }
  static F set(float x) {
    return each([&](int) { return x; });
  }
  static F zero() { return set(0); }
  static constexpr bool kScaleSaturates = false;  // scale2 takes any n
  static F iota() {
    return each([](int i) { return float(i); });
  }
  static F add(F a, F b) {
    return each([&](int i) { return a.v[i] + b.v[i]; });
  }
  static F sub(F a, F b) {
    return each([&](int i) { return a.v[i] - b.v[i]; });
  }
  static F mul(F a, F b) {
    return each([&](int i) { return a.v[i] * b.v[i]; });
  }
  static F div(F a, F b) {
    return each([&](int i) { return a.v[i] / b.v[i]; });
  }
  static F fma(F a, F b, F c) {
    return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
  }
  static F max(F a, F b) {
    return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static F min(F a, F b) {
    return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  static F abs(F x) {
    return each([&](int i) { return std::fabs(x.v[i]); });
  }
  static F round(F x) {
    return each([&](int i) { return std::nearbyintf(x.v[i]); });
  }
  static F scale2(F x, F n) {
    return each([&](int i) { return std::isfinite(n.v[i]) ? std::ldexp(x.v[i], int(n.v[i])) : n.v[i]; });
  }
  static F copy_sign(F m, F s) {
    return each([&](int i) { return std::copysign(m.v[i], s.v[i]); });
  }
  static F where_ge(F a, F b, F x, F y) {
    return each([&](int i) { return a.v[i] >= b.v[i] ? x.v[i] : y.v[i]; });
  }
  static float sum(F x) { return (x.v[0] + x.v[1]) + (x.v[2] + x.v[3]); }
  static float largest(F x) { return std::max(std::max(x.v[0], x.v[1]), std::max(x.v[2], x.v[3])); }

  static void load_bf16_pair(const uint16_t* p, F& low, F& high) {
    low = each([&](int i) { return bf16_to_f32(p[2 * i]); });
    high = each([&](int i) { return bf16_to_f32(p[2 * i + 1]); });
  }
  static F load_f16(const uint16_t* p) {
    return each([&](int i) { return f16_to_f32(p[i]); });
  }
  static F load_bf16(const uint16_t* p) {
    return each([&](int i) { return bf16_to_f32(p[i]); });
  }

  struct I {
    int32_t v[W];
  };
  static I zero_i() { return {}; }
  static I set_i(uint32_t x) { return {{int32_t(x), int32_t(x), int32_t(x), int32_t(x)}}; }
  static I load_i8_pairs(const int8_t* p) {
    I r;
    for (int i = 0; i < W; ++i) r.v[i] = int32_t(uint32_t(uint16_t(int16_t(p[2 * i]))) | uint32_t(uint16_t(int16_t(p[2 * i + 1]))) << 16);
    return r;
  }
  static I madd(I sum, I a, I b) {
    for (int i = 0; i < W; ++i) sum.v[i] += int32_t(int16_t(a.v[i])) * int16_t(b.v[i]) + (a.v[i] >> 16) * (b.v[i] >> 16);
    return sum;
  }
  static void store_i(void* p, I x) { std::memcpy(p, x.v, sizeof x.v); }
  static I load_i(const void* p) {
    I r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
  }
  static I sub_i(I a, I b) {
    for (int i = 0; i < W; ++i) a.v[i] -= b.v[i];
    return a;
  }
  static F to_float(I x) {
    return each([&](int i) { return float(x.v[i]); });
  }
  static void store_i16(int16_t* p, F x) {
    for (int i = 0; i < W; ++i) p[i] = int16_t(std::nearbyintf(x.v[i]));
  }

  static void transpose(F (&r)[W]) {
    for (int i = 0; i < W; ++i)
      for (int j = 0; j < i; ++j) std::swap(r[i].v[j], r[j].v[i]);
  }
};

}  // namespace conan::cpu::CONAN_ISA
