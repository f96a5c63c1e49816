// Merging by singular vectors, for weights that are matrices; everything else is averaged.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "merge/linear_algebra.h"
#include "merge/methods.h"

namespace conan::merge {

namespace {

/// Task vector p as a matrix [rows, cols].
Dense task_vector(const Job& job, size_t p) {
  Dense out(job.rows(), job.cols());
  job.for_chunks([&](int64_t, int64_t first, int64_t count, Workspace& workspace) {
    float *x = workspace.take(2 * kBlock), *base = x + kBlock;
    for (int64_t done = 0; done < count; done += kBlock) {
      const int64_t n = std::min(kBlock, count - done);
      job.parents[p].source->read(first + done, n, x);
      job.base->read(first + done, n, base);
      for (int64_t i = 0; i < n; ++i) out.values[size_t(first + done + i)] = double(x[i]) - double(base[i]);
    }
  });
  return out;
}

/// u diag(s) vt
Dense compose(Dense u, const std::vector<double>& s, const Dense& vt, int threads) {
  for (int64_t i = 0; i < u.rows; ++i)
    for (int64_t r = 0; r < u.cols; ++r) u.row(i)[r] *= s[size_t(r)];
  return multiply(u, vt, threads);
}

/// The nearest matrix with orthonormal columns (or rows): the singular values become 1 (Procrustes).
Dense orthogonalized(const Dense& a, int threads) {
  const Svd d = svd(a, threads);
  return multiply(d.u, d.vt, threads);
}

/// TSV-M (Gargiulo et al. 2025): of each of T task vectors the leading rank / T singular triples; their singular vectors,
/// put side by side, are made orthogonal so that tasks no longer interfere.
Dense tsv_m(const Job& job) {
  const size_t tasks = job.parents.size();
  const int64_t keep = std::max<int64_t>(1, std::min(job.rows(), job.cols()) / int64_t(tasks));
  std::vector<Svd> parts;
  int64_t total = 0;
  for (size_t p = 0; p < tasks; ++p) {
    parts.push_back(svd(task_vector(job, p), job.threads));
    total += std::min<int64_t>(keep, int64_t(parts.back().s.size()));
  }
  Dense u(job.rows(), total), vt(total, job.cols());
  std::vector<double> s;
  for (const Svd& part : parts) {
    const int64_t first = int64_t(s.size()), n = std::min<int64_t>(keep, int64_t(part.s.size()));
    for (int64_t i = 0; i < u.rows; ++i) std::copy_n(part.u.row(i), n, u.row(i) + first);
    std::copy_n(part.vt.row(0), n * vt.cols, vt.row(first));
    s.insert(s.end(), part.s.begin(), part.s.begin() + n);
  }
  if (!total) return Dense(job.rows(), job.cols());
  return compose(orthogonalized(u, job.threads), s, orthogonalized(vt, job.threads), job.threads);
}

/// Iso-C (Marczak et al. 2025): the sum of the task vectors with every singular value replaced by their mean.
Dense iso_c(const Job& job) {
  Dense sum = task_vector(job, 0);
  for (size_t p = 1; p < job.parents.size(); ++p) {
    const Dense next = task_vector(job, p);
    for (size_t i = 0; i < sum.values.size(); ++i) sum.values[i] += next.values[i];
  }
  Svd d = svd(sum, job.threads);
  double mean = 0;
  for (double s : d.s) mean += s / double(std::min(job.rows(), job.cols()));
  std::fill(d.s.begin(), d.s.end(), mean);
  return compose(d.u, d.s, d.vt, job.threads);
}

/// WUDI (Cheng et al. 2025): minimise over m the interference sum_i ||(m - d_i) d_i^T||^2 / ||d_i||^2 by Adam from the sum
/// of the task vectors. With G = sum_i d_i^T d_i / ||d_i||^2 and H = sum_i d_i d_i^T d_i / ||d_i||^2 the gradient is
/// 2 (m G - H).
Dense wudi(const Job& job) {
  Dense m(job.rows(), job.cols()), g(job.cols(), job.cols()), h(job.rows(), job.cols());
  for (size_t p = 0; p < job.parents.size(); ++p) {
    const Dense d = task_vector(job, p);
    double norm2 = 0;
    for (double v : d.values) norm2 += v * v;
    for (size_t i = 0; i < m.values.size(); ++i) m.values[i] += d.values[i];
    if (norm2 == 0) continue;
    const Dense gram = multiply(transposed(d), d, job.threads), product = multiply(d, gram, job.threads);
    for (size_t i = 0; i < g.values.size(); ++i) g.values[i] += gram.values[i] / norm2;
    for (size_t i = 0; i < h.values.size(); ++i) h.values[i] += product.values[i] / norm2;
  }
  const double rate = job.number("learning_rate", 1e-5), beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  const int64_t steps = int64_t(job.number("iterations", 300));
  std::vector<double> first(m.values.size()), second(m.values.size());
  for (int64_t step = 1; step <= steps; ++step) {
    if (job.check) (*job.check)();
    const Dense product = multiply(m, g, job.threads);
    const double correct1 = 1 - std::pow(beta1, double(step)), correct2 = 1 - std::pow(beta2, double(step));
    for (size_t i = 0; i < m.values.size(); ++i) {
      const double gradient = 2 * (product.values[i] - h.values[i]);
      first[i] = beta1 * first[i] + (1 - beta1) * gradient;
      second[i] = beta2 * second[i] + (1 - beta2) * gradient * gradient;
      m.values[i] -= rate * (first[i] / correct1) / (std::sqrt(second[i] / correct2) + eps);
    }
  }
  return m;
}

}  // namespace

void merge_spectral(Job& job) {
  job.divide(false);
  const double lambda = job.number("lambda", 1);
  if (job.shape.size() != 2 || !job.flag("matrix", true) || job.size() == 0) {
    const std::vector<double> coefficients(job.parents.size(), lambda / double(job.parents.size()));
    job.produce([&](Block& block, Workspace&) {
      Combination c;
      c.parents = int(block.x.size());
      c.x = block.x.data();
      c.base = block.base;
      c.coefficients = coefficients.data();
      kernels().combine(c, block.n, block.out);
    });
    return;
  }
  const std::string& kind = (*job.options)["kind"].string();
  const Dense merged = kind == "tsv_m" ? tsv_m(job) : kind == "iso_c" ? iso_c(job) : wudi(job);
  job.produce([&](Block& block, Workspace&) {
    for (int64_t i = 0; i < block.n; ++i) block.out[i] = double(block.base[i]) + lambda * merged.values[size_t(block.first + i)];
  });
}

}  // namespace conan::merge
