// Methods whose result is a weighted sum of the parents (or base plus a weighted sum of their task vectors). Everything
// they need to know about the tensors is the matrix of inner products, so one pass takes it and a second one adds up.
// Points on the sphere are kept as coefficients over the unit vectors; no method holds a tensor.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "merge/methods.h"

namespace conan::merge {

namespace {

using Numbers = std::vector<double>;

/// Inner products [count, count] of the vectors one group (a tensor, a row or a column) is made of.
struct Gram {
  size_t count;
  const double* values;
  double operator()(size_t i, size_t j) const { return values[i * count + j]; }
  double norm(size_t i) const { return std::sqrt(std::max(0.0, (*this)(i, i))); }
};

Numbers slerp(const Gram& g, double t) {
  const double na = g.norm(0) > 1e-8 ? g.norm(0) : 1, nb = g.norm(1) > 1e-8 ? g.norm(1) : 1;
  const double cosine = std::clamp(g(0, 1) / (na * nb), -1.0, 1.0);
  if (std::abs(cosine) > 0.9995) return {1 - t, t};
  const double theta = std::acos(cosine);
  return {std::sin((1 - t) * theta) / std::sin(theta), std::sin(t * theta) / std::sin(theta)};
}

/// As slerp, with another rule for what counts as parallel.
Numbers nuslerp(const Gram& g, double t) {
  const double cosine = std::clamp(g(0, 1) / (std::max(g.norm(0), 1e-7) * std::max(g.norm(1), 1e-7)), -1.0, 1.0);
  if (1 - cosine * cosine <= 1e-16) return {1 - t, t};
  const double theta = std::acos(cosine);
  return {std::sin((1 - t) * theta) / std::sin(theta), std::sin(t * theta) / std::sin(theta)};
}

/// Inner product of two points given by coefficients over the columns of `unit`.
double inner(const std::vector<Numbers>& unit, const Numbers& a, const Numbers& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i)
    for (size_t j = 0; j < b.size(); ++j) sum += a[i] * b[j] * unit[i][j];
  return sum;
}

void axpy(Numbers& y, double a, const Numbers& x) {
  for (size_t i = 0; i < y.size(); ++i) y[i] += a * x[i];
}

void scale(Numbers& y, double a) {
  for (double& v : y) v *= a;
}

std::vector<Numbers> unit_gram(const Gram& g, const Numbers& norms) {
  std::vector<Numbers> unit(g.count, Numbers(g.count));
  for (size_t i = 0; i < g.count; ++i)
    for (size_t j = 0; j < g.count; ++j) unit[i][j] = norms[i] > 0 && norms[j] > 0 ? g(i, j) / (norms[i] * norms[j]) : 0;
  return unit;
}

/// Barycentre in the tangent plane at the weighted mean of the unit vectors, back onto the sphere, times the weighted
/// mean of the norms.
Numbers multislerp(const Gram& g, Numbers weights, bool normalize, double eps, const std::string& name) {
  const size_t n = g.count;
  if (n == 1) return {1};
  double sum = 0;
  for (double w : weights) sum += w;
  if (normalize) scale(weights, 1 / sum);
  Numbers norms(n);
  for (size_t i = 0; i < n; ++i) norms[i] = g.norm(i) + eps;
  const std::vector<Numbers> unit = unit_gram(g, norms);
  Numbers mean = weights;
  const double length = std::sqrt(std::max(0.0, inner(unit, mean, mean)));
  if (length < eps) {
    if (n != 2) fail("CONFIG_INVALID", name, ": multislerp: expected weighted unit vectors that do not cancel out, their sum is zero");
    return weights;
  }
  scale(mean, 1 / length);
  Numbers tangent(n);
  double mean_norm = 0;
  for (size_t i = 0; i < n; ++i) {
    Numbers e(n);
    e[i] = 1;
    const double dot = inner(unit, e, mean);
    tangent[i] += weights[i];
    axpy(tangent, -weights[i] * dot, mean);
    mean_norm += weights[i] * g.norm(i);
  }
  const double angle = std::sqrt(std::max(0.0, inner(unit, tangent, tangent))) + eps;
  Numbers result(n);
  axpy(result, std::cos(angle), mean);
  axpy(result, std::sin(angle) / angle, tangent);
  for (size_t i = 0; i < n; ++i) result[i] *= mean_norm / norms[i];
  return result;
}

/// The Riemannian centre of mass on the sphere, by fixed-point iteration; times the mean norm.
Numbers karcher(const Gram& g, int64_t max_iter, double tol) {
  const size_t n = g.count;
  if (n == 1) return {1};
  Numbers norms(n);
  double mean_norm = 0;
  std::vector<size_t> valid;
  for (size_t i = 0; i < n; ++i) {
    norms[i] = g.norm(i);
    mean_norm += norms[i] / double(n);
    if (norms[i] > tol) valid.push_back(i);
  }
  if (valid.empty()) return Numbers(n);
  const std::vector<Numbers> unit = unit_gram(g, norms);
  const double alpha = 1.0 / double(valid.size());
  auto length = [&](const Numbers& v) { return std::sqrt(std::max(0.0, inner(unit, v, v))); };
  Numbers mean(n);
  for (size_t i : valid) mean[i] = alpha;
  if (const double norm = length(mean); norm < tol) {
    mean.assign(n, 0);
    mean[valid[0]] = 1;
  } else {
    scale(mean, 1 / norm);
  }
  for (int64_t iteration = 0; iteration < max_iter; ++iteration) {
    Numbers tangent(n);
    for (size_t i : valid) {
      Numbers e(n);
      e[i] = 1;
      const double dot = std::clamp(inner(unit, mean, e), -1.0, 1.0), theta = std::acos(dot);
      if (theta < tol) continue;
      const double factor = alpha * theta / std::sin(theta);
      tangent[i] += factor;
      axpy(tangent, -factor * dot, mean);
    }
    const double norm = length(tangent);
    if (norm < tol) break;
    scale(mean, std::cos(norm));
    axpy(mean, std::sin(norm) / norm, tangent);
    if (const double left = length(mean); left > tol) scale(mean, 1 / left);
  }
  for (size_t i = 0; i < n; ++i) mean[i] = norms[i] > 0 ? mean[i] * mean_norm / norms[i] : 0;
  return mean;
}

/// t = N cos / (1 + (N - 1) cos) of the way from the base to the mean (Jang et al. 2024).
Numbers model_stock(const Gram& g) {
  const size_t n = g.count;
  double sum = 0, pairs = 0;
  for (size_t i = 0; i < n; ++i)
    for (size_t j = i + 1; j < n; ++j, ++pairs) sum += std::clamp(g(i, j) / std::max(g.norm(i) * g.norm(j), 1e-6), -1.0, 1.0);
  const double cosine = sum / pairs, divisor = 1 + double(n - 1) * cosine;
  return Numbers(n, std::abs(divisor) < 1e-6 ? 0 : cosine / divisor);
}

enum class Group { tensor, row, column };

}  // namespace

void merge_combination(Job& job) {
  job.divide(false);
  const std::string& kind = (*job.options)["kind"].string();
  const size_t n = job.parents.size();
  Numbers weights;
  double sum = 0;
  for (const Parent& parent : job.parents) weights.push_back(parent.weight), sum += parent.weight;

  Group group = Group::tensor;
  if (kind == "nuslerp" && !job.flag("nuslerp_flatten", true)) group = job.flag("nuslerp_row_wise", false) ? Group::column : Group::row;
  if (kind == "model_stock" && job.flag("filter_wise", false)) group = Group::row;
  if (job.shape.size() < 2) group = Group::tensor;

  std::function<Numbers(const Gram&)> coefficients;
  if (kind == "linear") {
    const bool normalize = job.flag("normalize", true);
    if (normalize && sum == 0) fail("CONFIG_INVALID", job.name, ": linear: expected weights whose sum is not zero");
    Numbers fixed = weights;
    if (normalize) scale(fixed, 1 / sum);
    coefficients = [fixed](const Gram&) { return fixed; };
  } else if (kind == "passthrough") {
    coefficients = [&](const Gram&) { return Numbers{job.number("scale", 1)}; };
  } else if (kind == "slerp") {
    coefficients = [t = job.number("t", 0)](const Gram& g) { return slerp(g, t); };
  } else if (kind == "nuslerp") {
    coefficients = [t = std::abs(sum) < 1e-6 ? 0.5 : weights[1] / sum](const Gram& g) { return nuslerp(g, t); };
  } else if (kind == "multislerp") {
    coefficients = [&](const Gram& g) { return multislerp(g, weights, job.flag("normalize_weights", true), job.number("eps", 1e-8), job.name); };
  } else if (kind == "karcher") {
    coefficients = [&](const Gram& g) { return karcher(g, int64_t(job.number("max_iter", 10)), job.number("tol", 1e-5)); };
  } else if (kind == "model_stock") {
    coefficients = model_stock;
  } else {
    fail("INTERNAL", "unknown combination ", kind);
  }

  // A column is what lies along the first dimension, a row what lies along the last.
  const int64_t cols = group == Group::column ? job.size() / std::max<int64_t>(1, job.shape[0]) : job.cols();
  const int64_t groups = group == Group::tensor ? 1 : group == Group::row ? job.rows() : cols;
  const size_t products = n * n;
  Numbers gram(size_t(groups) * products);
  const bool needs_gram = kind != "linear" && kind != "passthrough";
  if (needs_gram && group == Group::tensor) {
    gram = job.scan(products, [&](Block& block, Workspace&, double* out) {
      for (size_t i = 0; i < n; ++i)
        for (size_t j = i; j < n; ++j) out[i * n + j] += kernels().dot(block.x[i], block.x[j], block.base, block.n);
    });
  } else if (needs_gram) {
    // Rows meet no other row and columns no other column; a row may span chunks, so sums are kept chunk by chunk where
    // they meet: columns.
    job.divide(true);
    const size_t copies = group == Group::column ? size_t(job.chunks()) : 1;
    Numbers partial(copies * gram.size());
    job.for_chunks([&](int64_t chunk, int64_t first, int64_t count, Workspace& workspace) {
      float* x = workspace.take(int64_t(n + 1) * kBlock);
      double* sums = partial.data() + (group == Group::column ? size_t(chunk) * gram.size() : 0);
      for (int64_t at = first; at < first + count;) {
        const int64_t row = at / cols, col = at % cols, length = std::min({kBlock, cols - col, first + count - at});
        float* base = x + int64_t(n) * kBlock;
        for (size_t p = 0; p < n; ++p) job.parents[p].source->read(at, length, x + int64_t(p) * kBlock);
        if (job.base) job.base->read(at, length, base);
        else std::fill(base, base + length, 0.f);
        for (size_t i = 0; i < n; ++i)
          for (size_t j = i; j < n; ++j) {
            const float *a = x + int64_t(i) * kBlock, *b = x + int64_t(j) * kBlock;
            if (group == Group::row) {
              sums[size_t(row) * products + i * n + j] += kernels().dot(a, b, base, length);
              continue;
            }
            for (int64_t k = 0; k < length; ++k) sums[size_t(col + k) * products + i * n + j] += double(a[k] - base[k]) * double(b[k] - base[k]);
          }
        at += length;
      }
    });
    for (size_t copy = 0; copy < copies; ++copy)
      for (size_t i = 0; i < gram.size(); ++i) gram[i] += partial[copy * gram.size() + i];
  }

  std::vector<Numbers> chosen;
  for (int64_t i = 0; i < groups; ++i) {
    double* values = gram.data() + size_t(i) * products;
    for (size_t a = 0; a < n; ++a)
      for (size_t b = 0; b < a; ++b) values[a * n + b] = values[b * n + a];
    chosen.push_back(coefficients({n, values}));
  }

  if (n == 1 && chosen[0][0] == 1 && (kind == "passthrough" || kind == "linear" || kind == "multislerp" || kind == "karcher")) {
    job.copy(*job.parents[0].source);
    return;
  }
  const auto body = [&](Block& block, Workspace&) {
    if (group == Group::column) {
      for (int64_t i = 0; i < block.n; ++i) {
        const Numbers& c = chosen[size_t((block.first + i) % cols)];
        double value = block.base ? block.base[i] : 0;
        for (size_t p = 0; p < n; ++p) value += c[p] * (double(block.x[p][i]) - (block.base ? block.base[i] : 0));
        block.out[i] = value;
      }
      return;
    }
    for (int64_t done = 0; done < block.n;) {
      const int64_t at = block.first + done, left = block.n - done;
      const int64_t length = group == Group::row ? std::min(left, cols - at % cols) : left;
      const Numbers& c = chosen[size_t(group == Group::row ? at / cols : 0)];
      std::vector<const float*> x(n);
      for (size_t p = 0; p < n; ++p) x[p] = block.x[p] + done;
      Combination combination;
      combination.parents = int(n);
      combination.x = x.data();
      combination.base = block.base ? block.base + done : nullptr;
      combination.coefficients = c.data();
      kernels().combine(combination, length, block.out + done);
      done += length;
    }
  };
  Stream stream;
  stream.coefficients = stream.weights = chosen[0].data();
  const auto always = [](Stream&, const Block&, Workspace&) { return true; };
  if (group != Group::tensor || !job.produce_stream(stream, always, body)) job.produce(body);
}

}  // namespace conan::merge
