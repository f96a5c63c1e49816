// Included once per instruction set, after CONAN_ISA is defined.
#include <algorithm>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "merge/kernels.h"

namespace conan::merge::CONAN_ISA {

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

static void widen(Dtype dtype, const void* in, int64_t n, float* __restrict out) {
  if (dtype == Dtype::f32) {
    std::memcpy(out, in, size_t(n) * 4);
    return;
  }
  const uint16_t* __restrict half = static_cast<const uint16_t*>(in);
  if (dtype == Dtype::bf16) {
    for (int64_t i = 0; i < n; ++i) out[i] = float_of(uint32_t(half[i]) << 16);
    return;
  }
  for (int64_t i = 0; i < n; ++i) {  // f16: moving the exponent by a product gets subnormal numbers right too
    const uint32_t magnitude = uint32_t(half[i] & 0x7fff) << 13, sign = uint32_t(half[i] & 0x8000) << 16;
    const uint32_t finite = bits_of(float_of(magnitude) * 0x1p112f), special = magnitude | 0x7f800000;
    out[i] = float_of((magnitude >= 0x0f800000 ? special : finite) | sign);
  }
}

/// The float next to x towards zero, with its last bit set where x lies between floats ("round to odd"): rounding that to
/// fewer bits gives what rounding x itself would.
inline uint32_t odd_bits(double x) {
  const float nearest = float(x);
  const double back = nearest;
  const uint32_t bits = bits_of(nearest), beyond = (back < 0 ? -back : back) > (x < 0 ? -x : x);
  return back == x || x != x ? bits : (bits - beyond) | 1;
}

static void narrow(Dtype dtype, const double* __restrict in, int64_t n, void* out) {
  if (dtype == Dtype::f32) {
    float* __restrict to = static_cast<float*>(out);
    for (int64_t i = 0; i < n; ++i) to[i] = float(in[i]);
    return;
  }
  uint16_t* __restrict half = static_cast<uint16_t*>(out);
  if (dtype == Dtype::bf16) {
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t bits = odd_bits(in[i]);
      const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, nan = (bits >> 16) | 0x40;
      half[i] = uint16_t((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded);
    }
    return;
  }
  for (int64_t i = 0; i < n; ++i) half[i] = f32_to_f16(float_of(odd_bits(in[i])));
}

// Sums run in eight lanes, each a fixed set of elements: a compiler may not reorder a sum by itself.
constexpr int kLanes = 8;

template <class Term>
inline double lane_sum(int64_t n, const Term& term) {
  double lane[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int j = 0; j < kLanes; ++j) lane[j] += term(i + j);
  for (; i < n; ++i) lane[i % kLanes] += term(i);
  double sum = 0;
  for (double x : lane) sum += x;
  return sum;
}

static double sum_squares(const float* __restrict x, const float* __restrict base, int64_t n) {
  if (!base) return lane_sum(n, [&](int64_t i) { return double(x[i]) * double(x[i]); });
  return lane_sum(n, [&](int64_t i) {
    const double d = x[i] - base[i];
    return d * d;
  });
}

static double sum_magnitudes(const float* __restrict x, const float* __restrict base, int64_t n) {
  return lane_sum(n, [&](int64_t i) { return double(float_of(bits_of(x[i] - base[i]) & 0x7fffffff)); });
}

static double dot(const float* __restrict a, const float* __restrict b, const float* __restrict base, int64_t n) {
  if (!base) return lane_sum(n, [&](int64_t i) { return double(a[i]) * double(b[i]); });
  return lane_sum(n, [&](int64_t i) { return double(a[i] - base[i]) * double(b[i] - base[i]); });
}

static double observe(const float* __restrict x, const float* __restrict base, int64_t n, float* __restrict high, float* __restrict low) {
  constexpr int kWide = 32;
  float lane[kWide] = {};
  int64_t i = 0;
  for (; i + kWide <= n; i += kWide)
    for (int j = 0; j < kWide; ++j) {
      const float d = x[i + j] - base[i + j];
      lane[j] += d * d;
      high[i + j] = d > high[i + j] ? d : high[i + j];
      low[i + j] = d < low[i + j] ? d : low[i + j];
    }
  double sum = 0;
  for (; i < n; ++i) {
    const float d = x[i] - base[i];
    sum += double(d) * double(d);
    high[i] = d > high[i] ? d : high[i];
    low[i] = d < low[i] ? d : low[i];
  }
  for (float v : lane) sum += double(v);
  return sum;
}

static int64_t count_conflicts(const float* __restrict high, const float* __restrict low, int64_t n) {
  int32_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += (high[i] > 0) & (low[i] < 0);
  return count;
}

static void magnitude_bits(const float* __restrict x, const float* __restrict base, int64_t n, uint32_t* __restrict bits) {
  if (!base) {
    for (int64_t i = 0; i < n; ++i) bits[i] = bits_of(x[i]) & 0x7fffffff;
    return;
  }
  for (int64_t i = 0; i < n; ++i) bits[i] = bits_of(x[i] - base[i]) & 0x7fffffff;
}

static void magnitude_bits_bf16(const uint16_t* __restrict x, const uint16_t* __restrict base, int64_t n, uint32_t* __restrict bits) {
  for (int64_t i = 0; i < n; ++i) bits[i] = bits_of(float_of(uint32_t(x[i]) << 16) - float_of(uint32_t(base[i]) << 16)) & 0x7fffffff;
}

static int64_t find_bracket(const uint32_t* __restrict bits, int64_t n, uint32_t low, uint32_t high, uint32_t first, uint32_t* __restrict found,
                            uint32_t* __restrict places, int64_t& above) {
  int64_t count = 0, i = 0, over = 0;
#if defined(__AVX512F__)
  const __m512i from = _mm512_set1_epi32(int(low)), to = _mm512_set1_epi32(int(high)), step = _mm512_set1_epi32(16);
  __m512i place = _mm512_add_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(int(first)));
  for (; i + 16 <= n; i += 16) {
    const __m512i b = _mm512_loadu_si512(bits + i);
    const __mmask16 outside = _mm512_cmpgt_epi32_mask(b, to);
    const __mmask16 inside = __mmask16(_mm512_cmpge_epi32_mask(b, from) & ~outside);
    over += __builtin_popcount(outside);
    _mm512_storeu_si512(found + count, _mm512_maskz_compress_epi32(inside, b));
    _mm512_storeu_si512(places + count, _mm512_maskz_compress_epi32(inside, place));
    count += __builtin_popcount(inside);
    place = _mm512_add_epi32(place, step);
  }
#endif
  for (; i < n; ++i) {
    over += bits[i] > high;
    found[count] = bits[i];
    places[count] = first + uint32_t(i);
    count += (bits[i] >= low) & (bits[i] <= high);
  }
  above += over;
  return count;
}

static void combine(const Combination& c, int64_t n, double* __restrict out) {
  double sum[kBlock], agreed[kBlock];
  std::fill(sum, sum + n, 0.0);
  const float* __restrict base = c.base;
  for (int p = 0; p < c.parents; ++p) {
    const float* __restrict x = c.x[p];
    const double factor = c.coefficients[p];
    if (base)
      for (int64_t i = 0; i < n; ++i) sum[i] += factor * (double(x[i]) - double(base[i]));
    else
      for (int64_t i = 0; i < n; ++i) sum[i] += factor * double(x[i]);
  }
  if (c.elect) {
    double votes[kBlock];
    std::copy(sum, sum + n, votes);
    std::fill(sum, sum + n, 0.0);
    std::fill(agreed, agreed + n, 0.0);
    for (int p = 0; p < c.parents; ++p) {
      const float* __restrict x = c.x[p];
      const double factor = c.coefficients[p], weight = c.weights[p];
      for (int64_t i = 0; i < n; ++i) {
        const double v = factor * (double(x[i]) - double(base[i]));
        const double along = votes[i] >= 0 ? v : -v;
        sum[i] += along > 0 ? v : 0.0;
        agreed[i] += along > 0 ? weight : 0.0;
      }
    }
    if (c.normalize)
      for (int64_t i = 0; i < n; ++i) {
        const double divisor = (agreed[i] < 0 ? -agreed[i] : agreed[i]) < 1e-8 ? 1.0 : agreed[i];
        sum[i] /= divisor;
      }
  }
  const double scale = c.scale;
  if (base)
    for (int64_t i = 0; i < n; ++i) out[i] = double(base[i]) + scale * sum[i];
  else
    for (int64_t i = 0; i < n; ++i) out[i] = scale * sum[i];
}

// Sixteen lanes as a value; the compiler splits them where registers are shorter.
typedef float F16 __attribute__((vector_size(64)));
typedef uint32_t U16 __attribute__((vector_size(64)));
typedef int32_t I16 __attribute__((vector_size(64)));

inline void widen_pair(const uint16_t* from, int half, F16& to) {
  U16 word;
  std::memcpy(&word, from, sizeof word);
  to = (F16)(half ? word & 0xffff0000u : word << 16);
}

// A word of memory holds two bf16: the low halves of sixteen words are widened by a shift, the high halves by a mask, and
// nothing needs to change places.
template <int kParents, bool kSparse, bool kElect, bool kBase>
static void stream_in(Stream& s, int64_t n) {
  const int parents = kParents ? kParents : s.parents;
  constexpr int kRoom = kParents ? kParents : Stream::kMaxParents;
  const F16 zero = {};
  const float scale = float(s.scale);
  F16 squares[kRoom] = {}, d[kRoom];
  float coefficients[kRoom], weights[kRoom];
  for (int p = 0; p < parents; ++p) {
    coefficients[p] = float(s.coefficients[p]);
    weights[p] = float(s.weights[p]);
  }
  I16 conflicts = {};
  for (int64_t i = 0; i < n; i += 32) {
    U16 words[2];
    for (int half = 0; half < 2; ++half) {
      F16 base = {}, sum = {}, high = {}, low = {};
      if (kBase) widen_pair(s.base + i, half, base);
      for (int p = 0; p < parents; ++p) {
        F16 v;
        widen_pair(s.x[p] + i, half, v);
        if (kBase) v -= base;
        squares[p] += v * v;
        high = v > high ? v : high;
        low = v < low ? v : low;
        if (kSparse) {
          const I16 bits = (I16)v & 0x7fffffff;
          v = (F16)((I16)v & (bits >= int32_t(s.from[p])) & (bits <= int32_t(s.to[p])));
        }
        v *= coefficients[p];
        if (kElect) d[p] = v;
        sum += v;
      }
      conflicts -= (high > zero) & (low < zero);
      if (kElect) {
        const I16 down = sum < zero;
        F16 total = {}, agreed = {};
        for (int p = 0; p < parents; ++p) {
          const F16 along = (F16)((I16)d[p] ^ (down & int32_t(0x80000000)));
          const I16 agrees = along > zero;
          total += (F16)((I16)d[p] & agrees);
          const F16 weight = zero + weights[p];
          agreed += (F16)((I16)weight & agrees);
        }
        sum = total;
        if (s.normalize) {
          const F16 absolute = (F16)((I16)agreed & 0x7fffffff);
          sum /= absolute < 1e-8f ? zero + 1.f : agreed;
        }
      }
      const U16 bits = (U16)(base + scale * sum), nan = bits | 0x400000;
      words[half] = (bits & 0x7fffffff) > 0x7f800000 ? nan : bits + 0x7fff + ((bits >> 16) & 1);
    }
    const U16 both = words[0] >> 16 | (words[1] & 0xffff0000u);
    std::memcpy(s.out + i, &both, sizeof both);
  }
  for (int p = 0; p < parents; ++p)
    for (int j = 0; j < 16; ++j) s.squares[p] += double(squares[p][j]);
  for (int j = 0; j < 16; ++j) s.conflicts += conflicts[j];
}

template <bool kSparse, bool kElect, bool kBase>
static void stream_of(Stream& s, int64_t n) {
  switch (s.parents) {
    case 1: return stream_in<1, kSparse, kElect, kBase>(s, n);
    case 2: return stream_in<2, kSparse, kElect, kBase>(s, n);
    case 3: return stream_in<3, kSparse, kElect, kBase>(s, n);
    case 4: return stream_in<4, kSparse, kElect, kBase>(s, n);
    default: return stream_in<0, kSparse, kElect, kBase>(s, n);
  }
}

static void stream_bf16(Stream& s, int64_t n) {
  if (!s.base) stream_of<false, false, false>(s, n);
  else if (s.elect) s.from ? stream_of<true, true, true>(s, n) : stream_of<false, true, true>(s, n);
  else s.from ? stream_of<true, false, true>(s, n) : stream_of<false, false, true>(s, n);
}

static void keep_between(float* __restrict x, const float* __restrict base, int64_t n, uint32_t from, uint32_t to) {
  const int32_t low = int32_t(from), high = int32_t(to);  // magnitudes have no sign bit
  for (int64_t i = 0; i < n; ++i) {
    const int32_t bits = int32_t(bits_of(x[i] - base[i]) & 0x7fffffff);
    x[i] = ((bits >= low) & (bits <= high)) ? x[i] : base[i];
  }
}

/// splitmix64 (Steele, Lea & Flood 2014) of a counter: element i has the same number whoever computes it.
inline uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

static void keep_random(float* __restrict x, const float* __restrict base, int64_t n, uint64_t key, int64_t first, double density,
                        const float* __restrict probability) {
  // Numbers of 31 bits against a threshold of 31 bits: a probability of 1 keeps all, 0 none.
  for (int64_t i = 0; i < n; ++i) {
    const int64_t number = int64_t(mix(key + uint64_t(first + i) * 0x9e3779b97f4a7c15u) >> 33);
    const int64_t threshold = int64_t((probability ? double(probability[i]) : density) * 0x1p31);
    x[i] = number < threshold ? x[i] : base[i];
  }
}

// Where small differences of softmaxes decide (Arcee fusion), recipes that users have give the same result only if every
// bit is PyTorch's: exponentials as SLEEF's expf with 1 ulp (Cody & Waite reduction, polynomial of degree 6), sums in
// sixteen lanes that are added as a tree, one division.
static void softmax(const float* __restrict x, int64_t n, float* __restrict out) {
  float top = x[0];
  for (int64_t i = 1; i < n; ++i) top = x[i] > top ? x[i] : top;
  for (int64_t i = 0; i < n; ++i) {
    const float d = x[i] - top < -104.f ? -104.f : x[i] - top;
    // Adding and taking away 1.5 * 2^23 rounds to a whole number.
    const float q = (d * 1.44269504f + 12582912.f) - 12582912.f;
    float s = __builtin_fmaf(q, -0.693145751953125f, d);
    s = __builtin_fmaf(q, -1.428606765330187045e-06f, s);
    float u = 0.000198527617612853646278381f;
    u = __builtin_fmaf(u, s, 0.00139304355252534151077271f);
    u = __builtin_fmaf(u, s, 0.00833336077630519866943359f);
    u = __builtin_fmaf(u, s, 0.0416664853692054748535156f);
    u = __builtin_fmaf(u, s, 0.166666671633720397949219f);
    u = __builtin_fmaf(u, s, 0.5f);
    u = 1.f + __builtin_fmaf(s * s, u, s);
    // In two steps, for results below the normal range.
    const int32_t half = int32_t(q) / 2, rest = int32_t(q) - half;
    out[i] = u * float_of(uint32_t(half + 127) << 23) * float_of(uint32_t(rest + 127) << 23);
  }
  float sum = out[0];
  if (n < 16) {
    for (int64_t i = 1; i < n; ++i) sum += out[i];
  } else {
    float lane[16];
    for (int j = 0; j < 16; ++j) lane[j] = out[j];
    for (int64_t i = 16; i < n; ++i) lane[i % 16] += out[i];
    for (int width = 8; width > 0; width /= 2)
      for (int j = 0; j < width; ++j) lane[j] += lane[j + width];
    sum = lane[0];
  }
  const float share = 1.f / sum;
  for (int64_t i = 0; i < n; ++i) out[i] *= share;
}

static double dot_f64(const double* __restrict a, const double* __restrict b, int64_t n) {
  double lane[4 * kLanes] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int j = 0; j < 4 * kLanes; ++j) lane[j] += a[i + j] * b[i + j];
  double sum = 0;
  for (; i < n; ++i) sum += a[i] * b[i];
  for (double x : lane) sum += x;
  return sum;
}

static void rotate_f64(double* __restrict x, double* __restrict y, int64_t n, double c, double s) {
  for (int64_t i = 0; i < n; ++i) {
    const double a = x[i], b = y[i];
    x[i] = c * a - s * b;
    y[i] = s * a + c * b;
  }
}

static void product_f64(const double* __restrict a, int64_t lda, const double* __restrict b, int64_t ldb, double* __restrict c, int64_t ldc, int rows,
                        int cols, int64_t depth) {
  if (rows == 4 && cols == 16) {
    double tile[4][16] = {};
    for (int64_t k = 0; k < depth; ++k)
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        const double factor = a[r * lda + k];
        for (int j = 0; j < 16; ++j) tile[r][j] += factor * b[k * ldb + j];
      }
    for (int r = 0; r < 4; ++r)
      for (int j = 0; j < 16; ++j) c[r * ldc + j] += tile[r][j];
    return;
  }
  for (int r = 0; r < rows; ++r) {
    double line[16] = {};
    for (int64_t k = 0; k < depth; ++k)
      for (int j = 0; j < cols; ++j) line[j] += a[r * lda + k] * b[k * ldb + j];
    for (int j = 0; j < cols; ++j) c[r * ldc + j] += line[j];
  }
}

static uint64_t checksum(const void* data, int64_t bytes, int64_t at) {
  const char* __restrict from = static_cast<const char*>(data);
  const int64_t words = bytes / 8;
  uint64_t sum = 0;
  auto term = [](uint64_t word, uint64_t place) {
    uint64_t z = (word + place * 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
    return (z ^ (z >> 32)) * 0x94d049bb133111ebu;
  };
  const uint64_t start = uint64_t(at / 8) + 1;
  for (int64_t i = 0; i < words; ++i) {
    uint64_t word;
    std::memcpy(&word, from + i * 8, 8);
    sum += term(word, start + uint64_t(i));
  }
  if (bytes % 8) {
    uint64_t word = 0;
    std::memcpy(&word, from + words * 8, size_t(bytes % 8));
    sum += term(word, start + uint64_t(words));
  }
  return sum;
}

static constexpr Kernels make_kernels(const char* name) {
  Kernels k = {};
  k.name = name;
  k.widen = widen;
  k.narrow = narrow;
  k.sum_squares = sum_squares;
  k.sum_magnitudes = sum_magnitudes;
  k.dot = dot;
  k.observe = observe;
  k.count_conflicts = count_conflicts;
  k.magnitude_bits = magnitude_bits;
  k.magnitude_bits_bf16 = magnitude_bits_bf16;
  k.find_bracket = find_bracket;
  k.stream_bf16 = stream_bf16;
  k.keep_between = keep_between;
  k.keep_random = keep_random;
  k.combine = combine;
  k.softmax = softmax;
  k.dot_f64 = dot_f64;
  k.rotate_f64 = rotate_f64;
  k.product_f64 = product_f64;
  k.checksum = checksum;
  return k;
}

}  // namespace conan::merge::CONAN_ISA
