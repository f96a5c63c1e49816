// exp, GELU and the other activations on registers.
namespace conan::cpu::CONAN_ISA {

using F = V::F;

/// 2^x, relative error about 2e-7 (the polynomial is Cephes' exp2f). NaN stays NaN; far below -126 it is 0 or nearly.
static inline F exp2(F x) {
  if constexpr (!V::kScaleSaturates) x = V::max(V::set(-126.f), V::min(V::set(126.f), x));
  F whole = V::round(x), f = V::sub(x, whole);
  F p = V::set(1.535336188319500e-4f);
  p = V::fma(p, f, V::set(1.339887440266574e-3f));
  p = V::fma(p, f, V::set(9.618437357674640e-3f));
  p = V::fma(p, f, V::set(5.550332471162809e-2f));
  p = V::fma(p, f, V::set(2.402264791363012e-1f));
  p = V::fma(p, f, V::set(6.931472028550421e-1f));
  p = V::fma(p, f, V::set(1.f));
  return V::scale2(p, whole);
}
static inline F exp(F x) { return exp2(V::mul(x, V::set(1.44269504088896341f))); }
static inline F sigmoid(F x) { return V::div(V::set(1.f), V::add(V::set(1.f), exp(V::sub(V::zero(), x)))); }

struct Identity {
  F operator()(F x) const { return x; }
};
struct Relu {
  F operator()(F x) const { return V::max(V::zero(), x); }
};
struct Silu {
  F operator()(F x) const { return V::mul(x, sigmoid(x)); }
};
struct QuickGelu {
  F operator()(F x) const { return V::mul(x, sigmoid(V::mul(x, V::set(1.702f)))); }
};
struct Tanh {
  F operator()(F x) const { return V::fma(V::set(2.f), sigmoid(V::mul(x, V::set(2.f))), V::set(-1.f)); }
};
struct GeluTanh {  // 0.5 x (1 + tanh u) = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
  F operator()(F x) const {
    F cubic = V::fma(V::mul(V::mul(x, x), x), V::set(0.044715f), x);
    return V::mul(x, sigmoid(V::mul(cubic, V::set(1.5957691216057308f))));
  }
};

#if defined(CONAN_LOOKUP16)
constexpr float kGeluEnd = 5.5f;  // beyond it GELU is x or 0 in f32

/// c[k][s]: coefficient k of the polynomial for Phi(|x|) - 1/2 on segment s of [0, kGeluEnd), over [0, 1) within it:
/// interpolation at the Chebyshev points, expanded from Newton's form.
template <int kTerms, int kSegments>
static void fit_gelu(float (&c)[kTerms][kSegments]) {
  const double width = double(kGeluEnd) / kSegments, pi = 3.14159265358979323846;
  for (int s = 0; s < kSegments; ++s) {
    double u[kTerms], d[kTerms], p[kTerms] = {};
    for (int i = 0; i < kTerms; ++i) {
      u[i] = 0.5 - 0.5 * std::cos(pi * (2 * i + 1) / (2 * kTerms));
      d[i] = 0.5 * std::erf((s + u[i]) * width / std::sqrt(2.0));
    }
    for (int j = 1; j < kTerms; ++j)
      for (int i = kTerms - 1; i >= j; --i) d[i] = (d[i] - d[i - 1]) / (u[i] - u[i - j]);
    for (int i = kTerms - 1; i >= 0; --i) {
      for (int k = kTerms - 1; k > 0; --k) p[k] = p[k - 1] - u[i] * p[k];
      p[0] = d[i] - u[i] * p[0];
    }
    for (int k = 0; k < kTerms; ++k) c[k][s] = float(p[k]);
  }
}

/// Sixteen polynomials of degree 4: the coefficients sit in registers and are picked by a permute, which is about half
/// the work of an erf. Absolute error of GELU below 3e-7.
struct GeluTable {
  alignas(64) float c[5][16];
  GeluTable() { fit_gelu<5, 16>(c); }
};
/// Made at first use: at load nothing of this file may run, as the CPU may be one that lacks its instructions.
static const GeluTable& gelu_table() {
  static const GeluTable table;
  return table;
}

/// The same from 32 polynomials of degree 2, absolute error 3e-5: for weights of 8 bits of mantissa or fewer.
struct CoarseGeluTable {
  alignas(64) float c[3][32];
  CoarseGeluTable() { fit_gelu<3, 32>(c); }
};
static const CoarseGeluTable& coarse_gelu_table() {
  static const CoarseGeluTable table;
  return table;
}

struct CoarseGeluErf {
  F c[3][2];  // in registers across a tile
  CoarseGeluErf() {
    for (int k = 0; k < 3; ++k)
      for (int half = 0; half < 2; ++half) c[k][half] = _mm512_load_ps(coarse_gelu_table().c[k] + 16 * half);
  }
  F operator()(F x) const {
    F a = V::abs(x);
    F u = V::min(V::set(31.9999f), V::mul(a, V::set(32 / kGeluEnd)));
    __m512i segment = _mm512_cvttps_epi32(u);
    F f = _mm512_reduce_ps(u, 0x0b);
    auto pick = [&](int k) { return _mm512_permutex2var_ps(c[k][0], segment, c[k][1]); };
    F p = V::fma(pick(2), f, pick(1));
    p = V::fma(p, f, pick(0));
    return V::fma(a, p, V::mul(x, V::set(0.5f)));
  }
};

struct GeluErf {
  F c[5];
  GeluErf() {
    for (int k = 0; k < 5; ++k) c[k] = _mm512_load_ps(gelu_table().c[k]);
  }
  F operator()(F x) const {
    F a = V::abs(x);
    F u = V::min(V::set(15.9999f), V::mul(a, V::set(16 / kGeluEnd)));
    __m512i segment = _mm512_cvttps_epi32(u);
    F f = _mm512_reduce_ps(u, 0x0b);  // u - trunc(u)
    auto pick = [&](int k) { return _mm512_permutexvar_ps(segment, c[k]); };
    F p = pick(4);
    p = V::fma(p, f, pick(3));
    p = V::fma(p, f, pick(2));
    p = V::fma(p, f, pick(1));
    p = V::fma(p, f, pick(0));
    return V::fma(a, p, V::mul(x, V::set(0.5f)));
  }
};
#else
struct GeluErf {  // erf by Abramowitz & Stegun 7.1.26, absolute error 1.5e-7
  F operator()(F x) const {
    F half = V::mul(x, V::set(0.5f)), z = V::abs(V::mul(x, V::set(0.70710678118654752f)));
    F t = V::div(V::set(1.f), V::fma(z, V::set(0.3275911f), V::set(1.f)));
    F p = V::set(1.061405429f);
    p = V::fma(p, t, V::set(-1.453152027f));
    p = V::fma(p, t, V::set(1.421413741f));
    p = V::fma(p, t, V::set(-0.284496736f));
    p = V::fma(p, t, V::set(0.254829592f));
    F e = V::mul(V::mul(p, t), exp(V::sub(V::zero(), V::mul(z, z))));
    return V::fma(half, V::copy_sign(V::sub(V::set(1.f), e), x), half);
  }
};
using CoarseGeluErf = GeluErf;
#endif

/// Calls body with the activation as an object of its own type, so that the choice is made once and not per element. `coarse`: an error of
/// a few 1e-5 is below what the weights' format loses.
template <class Body>
static inline void with_activation(Activation activation, bool coarse, const Body& body) {
  switch (activation) {
    case Activation::none: return body(Identity{});
    case Activation::gelu_erf:
      if (coarse) return body(CoarseGeluErf{});
      return body(GeluErf{});
    case Activation::gelu_tanh: return body(GeluTanh{});
    case Activation::quick_gelu: return body(QuickGelu{});
    case Activation::relu: return body(Relu{});
    case Activation::silu: return body(Silu{});
    case Activation::tanh: return body(Tanh{});
  }
}

}  // namespace conan::cpu::CONAN_ISA
