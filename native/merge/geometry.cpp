#include "merge/geometry.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numbers>

#include "base/error.h"
#include "base/thread_pool.h"
#include "merge/inputs.h"
#include "merge/job.h"
#include "merge/linear_algebra.h"

namespace conan::merge {

namespace {

std::string number(double value) {
  char out[32];
  std::snprintf(out, sizeof out, "%.9g", value);
  return out;
}

/// What both walks over the tensors of a plan share.
class Walk {
 public:
  Walk(const std::string& plan, const std::atomic<bool>& cancelled)
      : plan(Json::parse(plan, "the plan")), inputs(this->plan["checkpoints"]), threads(int(this->plan["threads"].integer())) {
    if (threads <= 0) threads = ThreadPool::default_threads();
    workspaces.resize(size_t(threads));
    check = [&cancelled] {
      if (cancelled.load(std::memory_order_relaxed)) fail("ABORTED", "stopped");
    };
  }

  /// One tensor with its base and all other checkpoints as parents.
  Job open(const Json& tensor, Held& held) {
    Job job;
    job.name = tensor["name"].string();
    job.shape = shape_of(tensor["shape"]);
    job.threads = threads;
    job.workspaces = &workspaces;
    job.check = &check;
    for (int64_t i = 0; i < int64_t(plan["checkpoints"].items().size()); ++i) {
      const Json ref = Json::parse(text("{\"checkpoint\":", i, ",\"tensor\":", json_quote(job.name), "}"), "a reference");
      const Source* source = inputs.source_of(ref, held);
      if (source->shape() != job.shape)
        fail("TENSOR_SHAPE", source->subject(), ": expected ", shape_text(job.shape), ", got ", shape_text(source->shape()));
      if (i == plan["base"].integer()) job.base = source;
      else job.parents.push_back({source});
    }
    job.divide(false);
    return job;
  }

  Json plan;
  Inputs inputs;
  int threads;
  std::vector<Workspace> workspaces;
  std::function<void()> check;
};

std::string square(const std::vector<double>& values, size_t n) {
  std::string out = "[";
  for (size_t i = 0; i < n; ++i) {
    out += i ? ",[" : "[";
    for (size_t j = 0; j < n; ++j) out += (j ? "," : "") + number(values[std::min(i, j) * n + std::max(i, j)]);
    out += "]";
  }
  return out + "]";
}

}  // namespace

std::string geometry(const std::string& plan, const std::atomic<bool>& cancelled, const std::function<void(int64_t, int64_t)>& progress) {
  Walk walk(plan, cancelled);
  const std::vector<Json>& tensors = walk.plan["tensors"].items();
  std::string out = "[";
  for (size_t t = 0; t < tensors.size(); ++t) {
    Held held;
    const Job job = walk.open(tensors[t], held);
    const size_t n = job.parents.size(), pairs = n * n;
    const std::vector<double> sums = job.scan(3 * pairs + 1, [&](Block& block, Workspace&, double* sum) {
      const Kernels& k = kernels();
      for (size_t i = 0; i < n; ++i)
        for (size_t j = i; j < n; ++j) {
          sum[i * n + j] += k.dot(block.x[i], block.x[j], block.base, block.n);
          int32_t opposed = 0, both = 0;
          for (int64_t e = 0; e < block.n; ++e) {
            const float a = block.x[i][e] - block.base[e], b = block.x[j][e] - block.base[e];
            opposed += ((a > 0) & (b < 0)) | ((a < 0) & (b > 0));
            both += (a != 0) & (b != 0);
          }
          sum[pairs + i * n + j] += opposed;
          sum[2 * pairs + i * n + j] += both;
        }
      sum[3 * pairs] += k.sum_squares(block.base, nullptr, block.n);
    });
    const auto part = [&](size_t first) { return square({sums.begin() + std::ptrdiff_t(first), sums.begin() + std::ptrdiff_t(first + pairs)}, n); };
    for (double value : sums)
      if (!std::isfinite(value)) fail("WEIGHT_NOT_FINITE", "tensor ", json_quote(job.name), ": expected finite weights in all models, found others");
    out += text(t ? ",\n" : "\n", "{\"tensor\":", json_quote(job.name), ",\"base\":", number(std::sqrt(sums[3 * pairs])), ",\"gram\":", part(0),
                ",\"conflicts\":", part(pairs), ",\"both\":", part(2 * pairs), "}");
    progress(int64_t(t) + 1, int64_t(tensors.size()));
  }
  return out + "\n]";
}

namespace {

/// The rows of a, made orthonormal (Gram-Schmidt, twice); rows that are nothing but rounding become zero.
void orthonormalize_rows(Dense& a) {
  const Kernels& k = kernels();
  for (int64_t i = 0; i < a.rows; ++i) {
    const double before = std::sqrt(k.dot_f64(a.row(i), a.row(i), a.cols));
    for (int pass = 0; pass < 2; ++pass)
      for (int64_t j = 0; j < i; ++j) {
        const double dot = k.dot_f64(a.row(i), a.row(j), a.cols);
        for (int64_t e = 0; e < a.cols; ++e) a.row(i)[e] -= dot * a.row(j)[e];
      }
    const double norm = std::sqrt(k.dot_f64(a.row(i), a.row(i), a.cols));
    for (int64_t e = 0; e < a.cols; ++e) a.row(i)[e] = norm > 1e-13 * before ? a.row(i)[e] / norm : 0;
  }
}

/// The leading `rank` singular triples by a randomised range finder with two power iterations (Halko, Martinsson & Tropp 2011).
Svd leading(const Dense& a, int64_t rank, uint64_t seed, int threads) {
  const int64_t size = std::min({rank + 10, a.rows, a.cols});
  if (size * 2 >= std::min(a.rows, a.cols)) return svd(a, threads);
  Dense probe(size, a.cols);
  uint64_t state = seed;
  const auto uniform = [&] {  // splitmix64, (0, 1]
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double((z ^ (z >> 31)) >> 11) + 1) * 0x1p-53;
  };
  for (double& x : probe.values) x = std::sqrt(-2 * std::log(uniform())) * std::cos(2 * std::numbers::pi * uniform());
  const Dense at = transposed(a);
  Dense range = multiply(probe, at, threads);  // rows span (a probe^T)^T
  orthonormalize_rows(range);
  for (int i = 0; i < 2; ++i) {
    Dense back = multiply(range, a, threads);
    orthonormalize_rows(back);
    range = multiply(back, at, threads);
    orthonormalize_rows(range);
  }
  Svd small = svd(multiply(range, a, threads), threads);
  small.u = multiply(transposed(range), small.u, threads);
  return small;
}

}  // namespace

std::string extract_lora(const std::string& plan, const std::atomic<bool>& cancelled, const std::function<void(int64_t, int64_t)>& progress) {
  Walk walk(plan, cancelled);
  const std::vector<Json>& tensors = walk.plan["tensors"].items();
  const bool by_energy = walk.plan.has("energy");
  const double energy = walk.plan["energy"].number();
  const uint64_t seed = uint64_t(walk.plan["seed"].integer());
  struct Factor {
    std::string name;
    int64_t rows, cols;
    std::vector<float> values;
  };
  std::vector<Factor> factors;
  std::string out = "[";
  for (size_t t = 0; t < tensors.size(); ++t) {
    Held held;
    const Job job = walk.open(tensors[t], held);
    walk.check();
    Dense delta(job.rows(), job.cols());
    const double norm2 = job.scan(1, [&](Block& block, Workspace&, double* sum) {
      for (int64_t i = 0; i < block.n; ++i) {
        const double d = double(block.x[0][i]) - double(block.base[i]);
        delta.values[size_t(block.first + i)] = d;
        *sum += d * d;
      }
    })[0];
    if (!std::isfinite(norm2)) fail("WEIGHT_NOT_FINITE", "tensor ", json_quote(job.name), ": expected finite weights in both models, found others");
    const int64_t most = std::min({job.rows(), job.cols(), walk.plan[by_energy ? "maxRank" : "rank"].integer()});
    int64_t rank = 0;
    double left2 = norm2;
    if (norm2 > 0) {
      Svd d;
      for (int64_t guess = by_energy ? std::min<int64_t>(32, most) : most;; guess = std::min(2 * guess, most)) {
        d = leading(delta, guess, seed + t, walk.threads);
        left2 = norm2;
        for (rank = 0; rank < std::min<int64_t>(guess, int64_t(d.s.size())) && !(by_energy && norm2 - left2 >= energy * norm2); ++rank)
          left2 -= d.s[size_t(rank)] * d.s[size_t(rank)];
        if (guess == most || (by_energy && norm2 - left2 >= energy * norm2)) break;
      }
      const std::string module = "base_model.model." + job.name.substr(0, job.name.size() - std::string(".weight").size());
      Factor a{module + ".lora_A.weight", rank, job.cols(), {}}, b{module + ".lora_B.weight", job.rows(), rank, {}};
      for (int64_t r = 0; r < rank; ++r)
        for (int64_t j = 0; j < job.cols(); ++j) a.values.push_back(float(std::sqrt(d.s[size_t(r)]) * d.vt.row(r)[j]));
      for (int64_t i = 0; i < job.rows(); ++i)
        for (int64_t r = 0; r < rank; ++r) b.values.push_back(float(d.u.row(i)[r] * std::sqrt(d.s[size_t(r)])));
      factors.push_back(std::move(a));
      factors.push_back(std::move(b));
    }
    out += text(t ? ",\n" : "\n", "{\"tensor\":", json_quote(job.name), ",\"rank\":", rank, ",\"norm\":", number(std::sqrt(norm2)),
                ",\"left\":", number(std::sqrt(std::max(0.0, left2))), "}");
    progress(int64_t(t) + 1, int64_t(tensors.size()));
  }
  std::vector<TensorHeader> headers;
  for (const Factor& factor : factors) headers.push_back({factor.name, Dtype::f32, {factor.rows, factor.cols}});
  SafetensorsWriter writer(walk.plan["output"].string(), headers, {{"format", "pt"}});
  for (size_t i = 0; i < factors.size(); ++i) writer.write(i, 0, factors[i].values.data(), factors[i].values.size() * 4);
  writer.close();
  return out + "\n]";
}

}  // namespace conan::merge
