// Loops over blocks of elements that merging spends its time in. Plain C++ that compilers vectorise, compiled once per
// instruction set; products and sums are never contracted, so every build computes the same bits.
#pragma once
#include <cstdint>

#include "ops/ops.h"

namespace conan::merge {

/// Elements per block: a handful of float arrays of this length stay in the first two cache levels.
constexpr int64_t kBlock = 2048;

/// Sums of one block of task vectors d_p = x_p - base.
struct Combination {
  int parents = 0;
  const float* const* x = nullptr;  // [parents][n]
  const float* base = nullptr;      // [n]; null: d_p is x_p
  const double* coefficients = nullptr;
  const double* weights = nullptr;  // what `normalize` divides by, for signs
  bool elect = false;               // only entries that agree with the sign of the weighted sum count
  bool normalize = false;           // with `elect`: divide by the weights that agreed
  double scale = 1;
};

/// The whole last pass of task arithmetic or TIES from stored bf16 to stored bf16, without leaving the registers, summed in
/// single precision.
struct Stream {
  static constexpr int kMaxParents = MergeArgs::kMaxParents;
  int parents = 0;
  const uint16_t* base = nullptr;      // null: no task vectors, the parents themselves
  const uint16_t* const* x = nullptr;  // [parents]
  const double* coefficients = nullptr;
  const double* weights = nullptr;
  const uint32_t *from = nullptr, *to = nullptr;  // magnitudes (bits) that stay, by parent; null: all
  bool elect = false, normalize = false;
  double scale = 1;
  uint16_t* out = nullptr;
  double* squares = nullptr;  // [parents] sums, added to
  int64_t conflicts = 0;
};

struct Kernels {
  const char* name;
  void (*widen)(Dtype dtype, const void* in, int64_t n, float* out);
  /// Rounds once, to nearest, ties to even.
  void (*narrow)(Dtype dtype, const double* in, int64_t n, void* out);
  /// Sum of (x - base)^2; base may be null.
  double (*sum_squares)(const float* x, const float* base, int64_t n);
  double (*sum_magnitudes)(const float* x, const float* base, int64_t n);
  /// Sum of (a - base)(b - base); base may be null.
  double (*dot)(const float* a, const float* b, const float* base, int64_t n);
  /// Takes x - base into the extremes of every entry so far; returns the sum of its squares, to the accuracy of a report.
  double (*observe)(const float* x, const float* base, int64_t n, float* high, float* low);
  /// Entries with high > 0 and low < 0: task vectors that point both ways.
  int64_t (*count_conflicts)(const float* high, const float* low, int64_t n);
  /// bits[i] = the bits of |x - base|: they order as the magnitudes do. Base may be null.
  void (*magnitude_bits)(const float* x, const float* base, int64_t n, uint32_t* bits);
  /// The same from stored bf16.
  void (*magnitude_bits_bf16)(const uint16_t* x, const uint16_t* base, int64_t n, uint32_t* bits);
  /// Lists the magnitudes from `low` to `high` in found[] and their places first + i in places[] (room for n + 16 each);
  /// returns how many, and adds to `above` how many are larger.
  int64_t (*find_bracket)(const uint32_t* bits, int64_t n, uint32_t low, uint32_t high, uint32_t first, uint32_t* found, uint32_t* places,
                          int64_t& above);
  /// n a multiple of 32.
  void (*stream_bf16)(Stream& stream, int64_t n);
  /// x = base where the magnitude lies below `from` or above `to` (bits).
  void (*keep_between)(float* x, const float* base, int64_t n, uint32_t from, uint32_t to);
  /// x = base where the random number of element `first` + i is not below `probability` [n] or, where that is null, `density`.
  void (*keep_random)(float* x, const float* base, int64_t n, uint64_t key, int64_t first, double density, const float* probability);
  /// out = base + scale * consensus
  void (*combine)(const Combination&, int64_t n, double* out);
  /// out = softmax(x), to the bit as PyTorch computes it on CPUs (see the code).
  void (*softmax)(const float* x, int64_t n, float* out);
  // Double precision, for singular values.
  double (*dot_f64)(const double* a, const double* b, int64_t n);
  /// x = c x - s y, y = s x + c y
  void (*rotate_f64)(double* x, double* y, int64_t n, double c, double s);
  /// c [rows, cols] += a [rows, depth] b [depth, cols], strides in elements; rows <= 4, cols <= 16
  void (*product_f64)(const double* a, int64_t lda, const double* b, int64_t ldb, double* c, int64_t ldc, int rows, int cols, int64_t depth);
  /// A sum over 8-byte words and their places: parts of a tensor may be added in any order.
  uint64_t (*checksum)(const void* data, int64_t bytes, int64_t at);
};

/// The best for this machine, or the one CONAN_CPU_ISA names (portable, avx2, avx512).
const Kernels& kernels();

extern const Kernels kernels_portable;
#if defined(__x86_64__)
extern const Kernels kernels_avx2, kernels_avx512;
#endif

}  // namespace conan::merge
