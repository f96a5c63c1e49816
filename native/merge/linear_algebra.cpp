#include "merge/linear_algebra.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>

#include "base/thread_pool.h"
#include "merge/kernels.h"

namespace conan::merge {

Dense transposed(const Dense& a) {
  Dense t(a.cols, a.rows);
  constexpr int64_t kTile = 32;
  for (int64_t i0 = 0; i0 < a.rows; i0 += kTile)
    for (int64_t j0 = 0; j0 < a.cols; j0 += kTile)
      for (int64_t i = i0; i < std::min(i0 + kTile, a.rows); ++i)
        for (int64_t j = j0; j < std::min(j0 + kTile, a.cols); ++j) t.row(j)[i] = a.row(i)[j];
  return t;
}

Dense multiply(const Dense& a, const Dense& b, int threads) {
  Dense c(a.rows, b.cols);
  constexpr int64_t kRows = 64, kDepth = 256;  // a panel of b [kDepth, 16] stays in the first cache level
  WorkQueue queue((a.rows + kRows - 1) / kRows);
  ThreadPool::instance().run(threads, [&](int) {
    for (int64_t block; queue.next(block);) {
      const int64_t last = std::min(a.rows, (block + 1) * kRows);
      for (int64_t k = 0; k < a.cols; k += kDepth)
        for (int64_t j = 0; j < b.cols; j += 16)
          for (int64_t i = block * kRows; i < last; i += 4)
            kernels().product_f64(a.row(i) + k, a.cols, b.row(k) + j, b.cols, c.row(i) + j, c.cols, int(std::min<int64_t>(4, last - i)),
                                  int(std::min<int64_t>(16, b.cols - j)), std::min(kDepth, a.cols - k));
    }
  });
  return c;
}

Svd svd(const Dense& a, int threads) {
  if (a.rows > a.cols) {
    Svd t = svd(transposed(a), threads);
    return {transposed(t.vt), t.s, transposed(t.u)};
  }
  // Rotate pairs of rows until all are orthogonal: then row i is s_i vt_i.
  Dense w = a;
  const int64_t n = a.rows, players = n + n % 2;
  std::vector<double> norm2(static_cast<size_t>(n));
  const Kernels& k = kernels();
  for (int sweep = 0; sweep < 40 && n > 1; ++sweep) {
    for (int64_t i = 0; i < n; ++i) norm2[size_t(i)] = k.dot_f64(w.row(i), w.row(i), w.cols);
    const double negligible = *std::max_element(norm2.begin(), norm2.end()) * 1e-30;
    std::atomic<bool> rotated{false};
    // A tournament: in each of players - 1 rounds every row meets another one, all pairs at the same time.
    for (int64_t round = 0; round + 1 < players; ++round) {
      const int64_t pairs = players / 2, share = std::max<int64_t>(1, pairs / (4 * threads));
      WorkQueue queue((pairs + share - 1) / share);
      ThreadPool::instance().run(w.cols * pairs < 20000 ? 1 : threads, [&](int) {
        for (int64_t part; queue.next(part);)
          for (int64_t pair = part * share; pair < std::min(pairs, (part + 1) * share); ++pair) {
            auto place = [&](int64_t seat) { return seat == 0 ? 0 : 1 + (seat - 1 + round) % (players - 1); };
            int64_t i = place(pair), j = place(players - 1 - pair);
            if (i >= n || j >= n) continue;
            if (i > j) std::swap(i, j);
            double& p = norm2[size_t(i)];
            double& q = norm2[size_t(j)];
            if (p <= negligible || q <= negligible) continue;
            const double dot = k.dot_f64(w.row(i), w.row(j), w.cols);
            if (std::abs(dot) <= 1e-15 * std::sqrt(p) * std::sqrt(q)) continue;
            const double zeta = (q - p) / (2 * dot), t = (zeta >= 0 ? 1 : -1) / (std::abs(zeta) + std::sqrt(1 + zeta * zeta));
            const double c = 1 / std::sqrt(1 + t * t), s = c * t;
            k.rotate_f64(w.row(i), w.row(j), w.cols, c, s);
            p = std::max(0.0, p - t * dot);
            q = std::max(0.0, q + t * dot);
            if (std::abs(dot) > 1e-13 * std::sqrt(p) * std::sqrt(q)) rotated = true;
          }
      });
    }
    if (!rotated) break;
  }
  std::vector<double> s(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) s[size_t(i)] = std::sqrt(k.dot_f64(w.row(i), w.row(i), w.cols));
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) { return s[size_t(x)] > s[size_t(y)]; });
  // Directions below the rounding of float32 weights are noise.
  const double floor = n ? s[size_t(order[0])] * 1e-7 : 0;
  int64_t rank = 0;
  while (rank < n && s[size_t(order[size_t(rank)])] > floor) ++rank;
  Svd out;
  out.vt = Dense(rank, a.cols);
  for (int64_t r = 0; r < rank; ++r) {
    const double value = s[size_t(order[size_t(r)])], *from = w.row(order[size_t(r)]);
    out.s.push_back(value);
    for (int64_t j = 0; j < a.cols; ++j) out.vt.row(r)[j] = from[j] / value;
  }
  out.u = multiply(a, transposed(out.vt), threads);
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t r = 0; r < rank; ++r) out.u.row(i)[r] /= out.s[size_t(r)];
  return out;
}

}  // namespace conan::merge
