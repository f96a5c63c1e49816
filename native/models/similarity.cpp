#include "models/similarity.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "base/clones.h"
#include "base/error.h"

namespace conan {

namespace {

/// The sum of term(i), in lanes that the compiler keeps in registers.
template <class Term>
__attribute__((always_inline)) inline float sum_of(int64_t count, const Term& term) {
  constexpr int lanes = 16;
  float sums[lanes] = {};
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes)
    for (int l = 0; l < lanes; ++l) sums[l] += term(i + l);
  for (int l = 0; i + l < count; ++l) sums[l] += term(i + l);
  for (int apart = lanes / 2; apart > 0; apart /= 2)
    for (int l = 0; l < apart; ++l) sums[l] += sums[l + apart];
  return sums[0];
}
CONAN_CLONES float squares(const float* x, int64_t count) {
  return sum_of(
      count, [=](int64_t i) __attribute__((always_inline)) { return x[i] * x[i]; });
}
CONAN_CLONES float squared_differences(const float* x, const float* y, int64_t count) {
  return sum_of(
      count, [=](int64_t i) __attribute__((always_inline)) { return (x[i] - y[i]) * (x[i] - y[i]); });
}
CONAN_CLONES float differences(const float* x, const float* y, int64_t count) {
  return sum_of(
      count, [=](int64_t i) __attribute__((always_inline)) { return std::fabs(x[i] - y[i]); });
}

/// One over each row's length; of zeros 0.
void inverse_lengths(const Matrix& x, float* out) {
  for (int64_t i = 0; i < x.rows; ++i) {
    const float sum = squares(x.row(i), x.cols);
    out[i] = sum > 0 ? 1 / std::sqrt(sum) : 0;
  }
}

}  // namespace

Similarity similarity_named(const std::string& name) {
  static const char* const names[] = {"cosine", "dot", "euclidean", "manhattan"};
  const auto found = std::find(std::begin(names), std::end(names), name);
  if (found == std::end(names)) fail("INVALID_INPUT", "similarity: expected cosine, dot, euclidean or manhattan, got \"", name, "\"");
  return Similarity(found - std::begin(names));
}

void similarities(Context& context, Similarity measure, const Matrix& a, const Matrix& b, const Matrix& out) {
  // The shorter list is packed as a weight, some rows at a time, which the longer one's rows meet in the cache.
  constexpr int64_t rows_packed = 512;
  const bool turned = a.rows < b.rows, products = measure == Similarity::cosine || measure == Similarity::dot;
  const Matrix &few = turned ? a : b, &many = turned ? b : a;
  const int64_t D = a.cols;
  for (int64_t packed = 0; packed < few.rows; packed += rows_packed) {
    const Matrix part = few.slice(packed, std::min(rows_packed, few.rows - packed));
    std::unique_ptr<Weight> weight;
    if (products) weight = context.ops.pack(context, {"vectors", {{part.data, Dtype::f32, {part.rows, D}}}}, WeightFormat::f32);
    std::vector<float> inverse(size_t(part.rows));
    if (measure == Similarity::cosine) inverse_lengths(part, inverse.data());
    context.ops.for_rows(context, many.rows, part.rows + D, [&](Context& own, int64_t first, int64_t count) {
      Arena::Scope scope(own.scratch);
      const Matrix rows = many.slice(first, count),
                   found = turned ? own.scratch.matrix(count, part.rows) : out.slice(first, count).columns(packed, part.rows);
      float* const own_inverse = own.scratch.contiguous(1, count).data;
      if (measure == Similarity::cosine) inverse_lengths(rows, own_inverse);  // first, since it reads rows in order, which memory does best
      if (products) {
        LinearArgs args;
        args.x = rows, args.weight = weight.get(), args.y = found;
        own.ops.linear(own, args);
      }
      for (int64_t i = 0; i < count; ++i) {
        const float* const x = rows.row(i);
        float* const to = found.row(i);
        if (measure == Similarity::cosine) {
          for (int64_t j = 0; j < part.rows; ++j) to[j] *= own_inverse[i] * inverse[size_t(j)];
        } else if (measure == Similarity::euclidean) {
          for (int64_t j = 0; j < part.rows; ++j) to[j] = -std::sqrt(squared_differences(x, part.row(j), D));
        } else if (measure == Similarity::manhattan) {
          for (int64_t j = 0; j < part.rows; ++j) to[j] = -differences(x, part.row(j), D);
        }
      }
      if (!turned) return;
      for (int64_t j = 0; j < part.rows; ++j)
        for (int64_t i = 0; i < count; ++i) out.row(packed + j)[first + i] = found.row(i)[j];
    });
  }
}

}  // namespace conan
