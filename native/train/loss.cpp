#include "train/loss.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "base/error.h"
#include "base/thread_pool.h"

namespace conan::train {

namespace {

using Rows = std::vector<std::vector<double>>;

double inner(const std::vector<double>& a, const std::vector<double>& b) {
  double parts[8] = {}, sum = 0;  // sums that do not wait for one another
  size_t c = 0;
  for (; c + 8 <= a.size(); c += 8)
    for (size_t k = 0; k < 8; ++k) parts[k] += a[c + k] * b[c + k];
  for (; c < a.size(); ++c) sum += a[c] * b[c];
  for (const double part : parts) sum += part;
  return sum;
}

void add(std::vector<double>& y, double factor, const std::vector<double>& x) {
  for (size_t c = 0; c < y.size(); ++c) y[c] += factor * x[c];
}

/// Calls body(unit rows, their gradient) for every size, and takes the gradient back to the rows as they are.
double over_sizes(const Matrix& vectors, const Matryoshka& matryoshka, const Matrix& dy, const std::function<double(const Rows&, Rows&)>& body) {
  for (int64_t i = 0; i < dy.rows; ++i) std::fill_n(dy.row(i), dy.cols, 0.f);
  std::vector<int64_t> sizes = matryoshka.dimensions;
  if (sizes.empty()) sizes = {vectors.cols};
  Rows total(size_t(vectors.rows), std::vector<double>(size_t(vectors.cols)));
  double loss = 0, weights = 0;
  for (size_t s = 0; s < sizes.size(); ++s) {
    const auto d = size_t(sizes[s]);
    if (sizes[s] < 1 || sizes[s] > vectors.cols) fail("INVALID_OPTION", "matryoshka: expected 1 to ", vectors.cols, " dimensions, got ", sizes[s]);
    const double weight = matryoshka.weights.empty() ? 1 : matryoshka.weights.at(s);
    weights += weight;
    Rows unit, gradient(size_t(vectors.rows), std::vector<double>(d));
    std::vector<double> lengths;
    for (int64_t i = 0; i < vectors.rows; ++i) {
      unit.emplace_back(vectors.row(i), vectors.row(i) + d);
      lengths.push_back(std::max(std::sqrt(inner(unit.back(), unit.back())), 1e-12));
      for (double& x : unit.back()) x /= lengths.back();
    }
    loss += weight * body(unit, gradient);
    for (size_t i = 0; i < unit.size(); ++i) {
      const double along = inner(unit[i], gradient[i]);
      for (size_t c = 0; c < d; ++c) total[i][c] += weight * (gradient[i][c] - along * unit[i][c]) / lengths[i];
    }
  }
  for (size_t i = 0; i < total.size(); ++i)
    for (size_t c = 0; c < total[i].size(); ++c) dy.row(int64_t(i))[c] = float(total[i][c] / weights);
  return loss / weights;
}

/// The loss of one that seeks, and by each score its slope; `share`: of its loss in the whole.
double seek(const std::vector<double>& scores, const std::vector<int32_t>& partners, const Contrastive& options, double share, double* pull) {
  if (partners.empty()) return 0;
  std::vector<char> is_partner(scores.size());
  for (int32_t d : partners) is_partner[size_t(d)] = 1;
  double loss = 0;
  const double weight = share / double(partners.size());
  for (int32_t positive : partners) {
    const double own = scores[size_t(positive)];
    const auto counts = [&](size_t d) {
      return d == size_t(positive) || (!is_partner[d] && (options.margin < 0 || scores[d] <= own + options.margin));
    };
    double most = own, sum = 0;
    for (size_t d = 0; d < scores.size(); ++d)
      if (counts(d)) most = std::max(most, scores[d]);
    for (size_t d = 0; d < scores.size(); ++d)
      if (counts(d)) sum += std::exp((scores[d] - most) / options.temperature);
    loss += weight * (std::log(sum) + (most - own) / options.temperature);
    for (size_t d = 0; d < scores.size(); ++d)
      if (counts(d)) pull[d] += weight / options.temperature * (std::exp((scores[d] - most) / options.temperature) / sum - (d == size_t(positive)));
  }
  return loss;
}

/// body(first, end) on blocks of a few of `count`: what the others have is read once for all of a block.
template <class Body>
void each_few(int threads, size_t count, const Body& body) {
  constexpr size_t few = 8;
  WorkQueue queue(int64_t((count + few - 1) / few));
  ThreadPool::instance().run(threads, [&](int) {
    for (int64_t block; queue.next(block);) body(size_t(block) * few, std::min(count, (size_t(block) + 1) * few));
  });
}

/// One direction: rows of `from` look for their partners among rows of `to`.
double one_direction(const Rows& unit, const std::vector<int32_t>& from, const std::vector<int32_t>& to,
                     const std::vector<std::vector<int32_t>>& partners, const Contrastive& options, double share, int threads, Rows& gradient) {
  const size_t width = unit.empty() ? 0 : unit[0].size();
  int64_t seekers = 0;
  for (const auto& own : partners) seekers += !own.empty();
  std::vector<double> pulls(from.size() * to.size()), losses(from.size());
  each_few(threads, from.size(), [&](size_t first, size_t end) {
    std::vector<std::vector<double>> scores(end - first, std::vector<double>(to.size()));
    for (size_t d = 0; d < to.size(); ++d)
      for (size_t q = first; q < end; ++q) scores[q - first][d] = inner(unit[size_t(from[q])], unit[size_t(to[d])]);
    for (size_t q = first; q < end; ++q) losses[q] = seek(scores[q - first], partners[q], options, share / double(seekers), &pulls[q * to.size()]);
  });
  Rows at_from(from.size(), std::vector<double>(width)), at_to(to.size(), std::vector<double>(width));
  each_few(threads, from.size(), [&](size_t first, size_t end) {
    for (size_t d = 0; d < to.size(); ++d)
      for (size_t q = first; q < end; ++q) add(at_from[q], pulls[q * to.size() + d], unit[size_t(to[d])]);
  });
  each_few(threads, to.size(), [&](size_t first, size_t end) {
    for (size_t q = 0; q < from.size(); ++q)
      for (size_t d = first; d < end; ++d) add(at_to[d], pulls[q * to.size() + d], unit[size_t(from[q])]);
  });
  for (size_t q = 0; q < from.size(); ++q) add(gradient[size_t(from[q])], 1, at_from[q]);
  for (size_t d = 0; d < to.size(); ++d) add(gradient[size_t(to[d])], 1, at_to[d]);
  return std::accumulate(losses.begin(), losses.end(), 0.0);
}

}  // namespace

double contrastive_loss(const Matrix& vectors, const Contrastive& pairs, const Matryoshka& matryoshka, const Matrix& dy, int threads) {
  std::vector<std::vector<int32_t>> back(pairs.documents.size());
  for (size_t q = 0; q < pairs.positives.size(); ++q)
    for (int32_t d : pairs.positives[q]) back.at(size_t(d)).push_back(int32_t(q));
  const double share = pairs.both_directions ? 0.5 : 1;
  return over_sizes(vectors, matryoshka, dy, [&](const Rows& unit, Rows& gradient) {
    double loss = one_direction(unit, pairs.queries, pairs.documents, pairs.positives, pairs, share, threads, gradient);
    if (pairs.both_directions) loss += one_direction(unit, pairs.documents, pairs.queries, back, pairs, share, threads, gradient);
    return loss;
  });
}

double graded_loss(const Matrix& vectors, const Graded& pairs, const Matryoshka& matryoshka, const Matrix& dy) {
  return over_sizes(vectors, matryoshka, dy, [&](const Rows& unit, Rows& gradient) {
    const size_t n = pairs.left.size();
    std::vector<double> cosine(n), pull(n);
    for (size_t i = 0; i < n; ++i) cosine[i] = inner(unit[size_t(pairs.left[i])], unit[size_t(pairs.right[i])]);
    double most = 0, sum = 0;
    for (size_t i = 0; i < n; ++i)
      for (size_t j = 0; j < n; ++j)
        if (pairs.grades[i] > pairs.grades[j]) most = std::max(most, pairs.scale * (cosine[j] - cosine[i]));
    sum = std::exp(-most);
    for (size_t i = 0; i < n; ++i)
      for (size_t j = 0; j < n; ++j)
        if (pairs.grades[i] > pairs.grades[j]) {
          const double e = std::exp(pairs.scale * (cosine[j] - cosine[i]) - most);
          sum += e;
          pull[j] += e, pull[i] -= e;
        }
    for (size_t i = 0; i < n; ++i) {
      const double factor = pairs.scale * pull[i] / sum;
      add(gradient[size_t(pairs.left[i])], factor, unit[size_t(pairs.right[i])]);
      add(gradient[size_t(pairs.right[i])], factor, unit[size_t(pairs.left[i])]);
    }
    return std::log(sum) + most;
  });
}

double distillation_loss(const Matrix& vectors, const Distillation& options, const Matryoshka& matryoshka, const Matrix& dy) {
  const Matrix& teacher = options.teacher;
  const size_t n = options.rows.size();
  const auto unit_rows = [&](int64_t size) {
    Rows out;
    for (int64_t i = 0; i < teacher.rows; ++i) {
      out.emplace_back(teacher.row(i), teacher.row(i) + size);
      const double length = std::max(std::sqrt(inner(out.back(), out.back())), 1e-12);
      for (double& x : out.back()) x /= length;
    }
    return out;
  };
  const Rows whole = unit_rows(teacher.cols);
  std::vector<double> relations(n * n);
  for (size_t i = 0; i < n; ++i)
    for (size_t j = 0; j < i; ++j) relations[i * n + j] = inner(whole[i], whole[j]);
  return over_sizes(vectors, matryoshka, dy, [&](const Rows& unit, Rows& gradient) {
    double loss = 0;
    if (teacher.cols == vectors.cols) {
      const Rows own = unit[0].size() == whole[0].size() ? whole : unit_rows(int64_t(unit[0].size()));
      for (size_t i = 0; i < n; ++i) {
        const auto row = size_t(options.rows[i]);
        loss += (1 - inner(unit[row], own[i])) / double(n);
        add(gradient[row], -1 / double(n), own[i]);
      }
    }
    const double share = n > 1 ? options.relations * 2 / double(n * (n - 1)) : 0;
    for (size_t i = 0; i < n; ++i)
      for (size_t j = 0; j < i; ++j) {
        const auto left = size_t(options.rows[i]), right = size_t(options.rows[j]);
        const double error = inner(unit[left], unit[right]) - relations[i * n + j];
        loss += share * error * error;
        add(gradient[left], 2 * share * error, unit[right]);
        add(gradient[right], 2 * share * error, unit[left]);
      }
    return loss;
  });
}

}  // namespace conan::train
