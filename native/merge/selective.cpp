// Methods that choose entries by a statistic of their own: SCE (Wan et al. 2024), Arcee fusion, NearSwap, RAM (2026).
#include <algorithm>
#include <cmath>
#include <cstring>

#include "merge/methods.h"
#include "merge/select.h"

namespace conan::merge {

namespace {
uint32_t bits_of(double magnitude) {
  const float x = float(magnitude);
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits & 0x7fffffff;
}

/// Loads base and parents for a pass that select_largest makes.
void load(const Job& job, int64_t first, int64_t n, Workspace& workspace, float*& base, std::vector<float*>& x) {
  base = workspace.take(int64_t(job.parents.size() + 1) * kBlock);
  job.base->read(first, n, base);
  x.clear();
  for (size_t p = 0; p < job.parents.size(); ++p) job.parents[p].source->read(first, n, x.emplace_back(base + int64_t(p + 1) * kBlock));
}

/// Magnitudes (bits) of the population variance of the task vectors, entry by entry.
void variances(const std::vector<float*>& x, const float* base, int64_t n, uint32_t* bits) {
  double mean[kBlock], sum[kBlock];
  const double share = 1 / double(x.size());
  std::fill(mean, mean + n, 0.0);
  std::fill(sum, sum + n, 0.0);
  for (const float* values : x)
    for (int64_t i = 0; i < n; ++i) mean[i] += double(values[i] - base[i]) * share;
  for (const float* values : x)
    for (int64_t i = 0; i < n; ++i) {
      const double off = double(values[i] - base[i]) - mean[i];
      sum[i] += off * off;
    }
  for (int64_t i = 0; i < n; ++i) bits[i] = bits_of(sum[i] * share);
}
}  // namespace

/// Select the entries of largest variance across models, calculate one coefficient a model from the mean square of what
/// is left, erase entries against the elected sign.
void merge_sce(Job& job) {
  job.divide(false);
  const size_t count = job.parents.size();
  const double topk = job.number("select_topk", 1);
  Cut cut;  // of bits 0: everything
  if (topk <= 0) {
    cut.bits = 0x7fffffff;
  } else if (topk < 1) {
    const std::vector<double> nonzero = job.scan(1, [&](Block& block, Workspace&, double* sum) {
      uint32_t bits[kBlock];
      variances(block.x, block.base, block.n, bits);
      *sum += double(std::count_if(bits, bits + block.n, [](uint32_t b) { return b != 0; }));
    });
    const Magnitudes magnitudes = [&](int64_t first, int64_t n, Workspace& workspace, uint32_t* bits) {
      float* base;
      std::vector<float*> x;
      load(job, first, n, workspace, base, x);
      variances(x, base, n, bits);
    };
    cut = select_largest(job, {{magnitudes, int64_t(nonzero[0] * topk)}})[0];
  }
  const auto select = [&](Block& block) {
    if (topk >= 1) return;
    const Cut::Share share = cut.share(job, block);
    uint32_t bits[kBlock];
    variances(block.x, block.base, block.n, bits);
    int64_t seen = 0;
    for (int64_t i = 0; i < block.n; ++i)
      if (!cut.holds(share, bits[i], seen))
        for (float* x : block.x) x[i] = block.base[i];
  };
  std::vector<double> weights = job.scan(count, [&](Block& block, Workspace&, double* sums) {
    select(block);
    for (size_t p = 0; p < count; ++p) sums[p] += kernels().sum_squares(block.x[p], block.base, block.n);
  });
  double sum = 0;
  for (double& w : weights) sum += w /= double(std::max<int64_t>(1, job.size()));
  for (double& w : weights) w = std::abs(sum) < 1e-6 ? 1 / double(count) : w / sum;
  job.produce([&](Block& block, Workspace&) {
    select(block);
    for (int64_t i = 0; i < block.n; ++i) {
      const double base = block.base[i];
      double votes = 0, value = 0, agreed = 0;
      for (size_t p = 0; p < count; ++p) votes += double(block.x[p][i]) - base;
      for (size_t p = 0; p < count; ++p) {
        const double d = double(block.x[p][i]) - base;
        if (!(votes >= 0 ? d > 0 : d < 0)) continue;
        value += weights[p] * d;
        agreed += weights[p];
      }
      block.out[i] = base + value / std::max(agreed, 1e-6);
    }
  });
}

/// Importance = |difference| * KL(softmax(row of the other) || softmax(row of the base)); entries at or above
/// median + 1.5 interquartile ranges change over to the other model, the rest stay the base. A divergence is a small
/// difference of large terms, so every step is taken in float32, as PyTorch does.
void merge_arcee_fusion(Job& job) {
  job.divide(true);
  const int64_t cols = job.cols(), n = job.size();
  std::vector<float> divergence(size_t(job.rows()));
  job.for_chunks([&](int64_t, int64_t first, int64_t count, Workspace&) {
    std::vector<float> row(static_cast<size_t>(cols)), p(static_cast<size_t>(cols)), q(static_cast<size_t>(cols));
    for (int64_t at = first; at < first + count; at += cols) {
      job.parents[0].source->read(at, cols, row.data());
      kernels().softmax(row.data(), cols, p.data());
      job.base->read(at, cols, row.data());
      kernels().softmax(row.data(), cols, q.data());
      double sum = 0;
      for (size_t i = 0; i < size_t(cols); ++i) {
        const float a = p[i] + 1e-8f, b = q[i] + 1e-8f;
        sum += double(a * float(std::log(double(a / b))));
      }
      divergence[size_t(at / cols)] = float(sum);
    }
  });
  const auto importance = [&](int64_t at, float x, float base) { return std::abs(x - base) * divergence[size_t(at / cols)]; };
  // Ranks are taken of magnitudes; a divergence that rounding made negative ranks below all, like zero.
  const auto importances = [&](int64_t first, int64_t count, Workspace& workspace, uint32_t* bits) {
    float* base;
    std::vector<float*> x;
    load(job, first, count, workspace, base, x);
    for (int64_t i = 0; i < count; ++i) bits[i] = bits_of(std::max(0.f, importance(first + i, x[0][i], base[i])));
  };
  // Quantile q is the entry at place floor(q (n - 1)) of the rising order.
  std::vector<Selection> quartiles;
  for (double q : {0.25, 0.5, 0.75}) quartiles.push_back({importances, n - int64_t(q * double(n - 1))});
  float quantiles[3] = {};
  if (n) {
    const std::vector<Cut> cuts = select_largest(job, quartiles);
    for (int i = 0; i < 3; ++i) std::memcpy(&quantiles[i], &cuts[size_t(i)].bits, 4);
  }
  const float threshold = quantiles[1] + 1.5f * (quantiles[2] - quantiles[0]);
  job.produce([&](Block& block, Workspace&) {
    for (int64_t i = 0; i < block.n; ++i)
      block.out[i] = importance(block.first + i, block.x[0][i], block.base[i]) >= threshold ? block.x[0][i] : block.base[i];
  });
}

/// Towards the other model by at most t: where they are nearer than t, the other's value.
void merge_nearswap(Job& job) {
  job.divide(false);
  const double t = job.number("t", 0);
  job.produce([&](Block& block, Workspace&) {
    for (int64_t i = 0; i < block.n; ++i) {
      const double a = block.base[i], b = block.x[0][i], share = std::clamp(t / std::max(std::abs(a - b), 1e-6), 0.0, 1.0);
      block.out[i] = share * b + (1 - share) * a;
    }
  });
}

/// Entries that one model alone changed (by more than epsilon) are taken whole, shared ones averaged. RAM+ strengthens
/// what is a model's own by 1 + r * min(shared / own, alpha).
void merge_ram(Job& job) {
  job.divide(false);
  const size_t count = job.parents.size();
  const double epsilon = job.number("epsilon", 1e-5), r = job.number("r", 0), alpha = job.number("alpha", 0);
  const auto changed = [&](const Block& block, size_t p, int64_t i) {
    return std::abs(double(block.x[p][i] - block.base[i])) > double(float(epsilon));
  };
  const auto changers = [&](const Block& block, int64_t i) {
    int n = 0;
    for (size_t p = 0; p < count; ++p) n += changed(block, p, i);
    return n;
  };
  std::vector<double> own(count, 1);
  if (r != 0) {
    const std::vector<double> counts = job.scan(2 * count, [&](Block& block, Workspace&, double* sums) {
      for (int64_t i = 0; i < block.n; ++i) {
        const int n = changers(block, i);
        for (size_t p = 0; p < count; ++p)
          if (changed(block, p, i)) sums[2 * p + (n > 1)] += 1;
      }
    });
    for (size_t p = 0; p < count; ++p) own[p] = 1 + r * std::clamp(counts[2 * p + 1] / std::max(counts[2 * p], epsilon), 0.0, alpha);
  }
  job.produce([&](Block& block, Workspace&) {
    for (int64_t i = 0; i < block.n; ++i) {
      const int n = changers(block, i);
      double sum = 0;
      for (size_t p = 0; p < count; ++p)
        if (changed(block, p, i)) sum += (double(block.x[p][i]) - double(block.base[i])) * (n > 1 ? 1.0 / n : own[p]);
      block.out[i] = double(block.base[i]) + sum;
    }
  });
}

}  // namespace conan::merge
