#include "train/loss.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "base/error.h"

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

std::vector<int64_t> sizes_of(const Matrix& vectors, const Matryoshka& matryoshka) {
  for (const int64_t d : matryoshka.dimensions)
    if (d < 1 || d > vectors.cols) fail("INVALID_OPTION", "matryoshka: expected 1 to ", vectors.cols, " dimensions, got ", d);
  return matryoshka.dimensions.empty() ? std::vector<int64_t>{vectors.cols} : matryoshka.dimensions;
}

/// Calls body(unit rows, their gradient) for every size, and takes the gradient back to the rows as they are.
double over_sizes(const Matrix& vectors, const Matryoshka& matryoshka, const Matrix& dy, const std::function<double(const Rows&, Rows&)>& body) {
  for (int64_t i = 0; i < dy.rows; ++i) std::fill_n(dy.row(i), dy.cols, 0.f);
  const std::vector<int64_t> sizes = sizes_of(vectors, matryoshka);
  Rows total(size_t(vectors.rows), std::vector<double>(size_t(vectors.cols)));
  double loss = 0, weights = 0;
  for (size_t s = 0; s < sizes.size(); ++s) {
    const auto d = size_t(sizes[s]);
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

}  // namespace

double contrastive_loss(Context& context, const Matrix& vectors, const Contrastive& pairs, const Matryoshka& matryoshka, double factor,
                        const Matrix& dy, PackedMatrices& packed) {
  const OperationTable& ops = context.ops;
  const int64_t R = vectors.rows;
  const std::vector<int64_t> sizes = sizes_of(vectors, matryoshka);
  const double weights =
      matryoshka.weights.empty() ? double(sizes.size()) : std::accumulate(matryoshka.weights.begin(), matryoshka.weights.end(), 0.0);
  std::vector<std::vector<int32_t>> back(pairs.documents.size());
  for (size_t q = 0; q < pairs.positives.size(); ++q)
    for (int32_t d : pairs.positives[q]) back.at(size_t(d)).push_back(int32_t(q));

  double loss = 0;
  packed.forget_many();
  clear(context, dy);
  for (size_t s = 0; s < sizes.size(); ++s) {
    Arena::Scope scope(context.scratch);
    const int64_t d = sizes[s];
    const double share = (matryoshka.weights.empty() ? 1 : matryoshka.weights.at(s)) / weights * (pairs.both_directions ? 0.5 : 1);
    const Matrix raw = vectors.columns(0, d), unit = context.scratch.matrix(R, d), slope = context.scratch.matrix(R, d);
    copy(context, raw, unit);
    ops.normalize(context, {unit});
    clear(context, slope);
    // Rows `from` look for their partners among rows `to`.
    const auto seek = [&](const std::vector<int32_t>& from, const std::vector<int32_t>& to, const std::vector<std::vector<int32_t>>& partners) {
      const auto N = int64_t(from.size()), M = int64_t(to.size());
      std::vector<int32_t> offsets{0}, positives;
      for (const std::vector<int32_t>& own : partners) {
        positives.insert(positives.end(), own.begin(), own.end());
        offsets.push_back(int32_t(positives.size()));
      }
      const auto seekers = std::count_if(partners.begin(), partners.end(), [](const auto& own) { return !own.empty(); });
      if (seekers == 0) return;
      const auto rows_of = [&](const std::vector<int32_t>& rows) {
        const Matrix out = context.scratch.contiguous(int64_t(rows.size()), d);
        ops.gather(context, {unit, out, rows.data()});
        return out;
      };
      const auto product = [&](const Matrix& x, const Weight& weight, const Matrix& y) {
        LinearArgs args;
        args.x = x, args.weight = &weight, args.y = y;
        ops.linear(context, args);
      };
      const Matrix seeking = rows_of(from), sought = rows_of(to), scores = context.scratch.matrix(N, M), pulls = context.scratch.matrix(N, M),
                   at_from = context.scratch.matrix(N, d), at_to = context.scratch.matrix(M, d);
      const Weight& weight = packed.pack(context, sought, WeightFormat::f32);
      product(seeking, weight, scores);
      std::vector<double> losses(from.size());
      ContrastArgs contrast{scores, pulls, offsets.data(), positives.data()};
      contrast.temperature = float(pairs.temperature), contrast.margin = float(pairs.margin);
      contrast.factor = float(factor * share / double(seekers));
      contrast.losses = losses.data();
      ops.contrast(context, contrast);
      product(pulls, packed.transposed(context, weight), at_from);
      clear(context, at_to);
      ops.linear_backward(context, {pulls, seeking, at_to});
      ops.scatter(context, {at_from, slope, from.data(), true});
      ops.scatter(context, {at_to, slope, to.data(), true});
      finish(context);
      loss += share / double(seekers) * std::accumulate(losses.begin(), losses.end(), 0.0);
    };
    seek(pairs.queries, pairs.documents, pairs.positives);
    if (pairs.both_directions) seek(pairs.documents, pairs.queries, back);
    ops.normalize_backward(context, {raw, slope});
    ops.scatter(context, {slope, dy.columns(0, d), nullptr, true});
  }
  return loss;
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
