// Dense linear algebra in double precision: products and the singular value decomposition, on all threads. Results do not
// depend on the number of threads.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace conan::merge {

/// Row-major.
struct Dense {
  int64_t rows = 0, cols = 0;
  std::vector<double> values;

  Dense() = default;
  Dense(int64_t r, int64_t c) : rows(r), cols(c), values(size_t(r * c)) {}
  double* row(int64_t i) { return values.data() + i * cols; }
  const double* row(int64_t i) const { return values.data() + i * cols; }
};

Dense transposed(const Dense& a);
Dense multiply(const Dense& a, const Dense& b, int threads);

/// a = u diag(s) vt; s falls, and holds only what is above rounding: rank = s.size() <= min(rows, cols).
struct Svd {
  Dense u;  // [rows, rank]
  std::vector<double> s;
  Dense vt;  // [rank, cols]
};

/// One-sided Jacobi rotations (Hestenes 1958; Demmel & Veselic 1992: small singular values come out as exact as large ones).
Svd svd(const Dense& a, int threads);

}  // namespace conan::merge
