// The definition of every operation: plain loops, sums in double, one thread. Fast backends are measured against it.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "cpu/cpu.h"

namespace conan::cpu {

namespace {

void* allocate(size_t bytes) {
  void* memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (!memory) fail("OUT_OF_MEMORY", "no memory: asked for ", bytes, " bytes");
  return memory;
}
void release(void* memory, size_t) { std::free(memory); }

struct PlainWeight : Weight {
  std::vector<float> values;  // [rows, cols], rounded to what `format` holds; int8 as whole numbers
  std::vector<float> scale;   // [rows], int8 only
};

float quantise(float* x, int64_t n) {
  float most = 0;
  for (int64_t i = 0; i < n; ++i) most = std::max(most, std::fabs(x[i]));
  for (int64_t i = 0; i < n; ++i) x[i] = most > 0 ? std::nearbyint(x[i] * (127 / most)) : 0;
  return most / 127;
}

std::unique_ptr<Weight> pack(Context&, const WeightSource& source, WeightFormat format) {
  auto weight = std::make_unique<PlainWeight>();
  weight->format = format;
  weight->gated = source.gated;
  const int64_t K = weight->cols = source.parts[0].shape[1];
  for (const TensorView& part : source.parts) {
    weight->values.resize(size_t((weight->rows + part.shape[0]) * K));
    read_f32(part, 0, part.size(), weight->values.data() + weight->rows * K);
    weight->rows += part.shape[0];
  }
  for (float& w : weight->values) {
    if (!std::isfinite(w)) fail("WEIGHT_NOT_FINITE", "tensor \"", source.name, "\" holds a NaN or an infinity");
    if (format == WeightFormat::bf16) w = bf16_to_f32(f32_to_bf16(w));
    if (format == WeightFormat::f16) w = f16_to_f32(f32_to_f16(w));
  }
  if (format == WeightFormat::i8)
    for (int64_t n = 0; n < weight->rows; ++n) weight->scale.push_back(quantise(&weight->values[size_t(n * K)], K));
  weight->bytes = weight->values.size() * sizeof(float);
  return weight;
}

void for_rows(Context& context, int64_t rows, int64_t, const RowsBody& body) { body(context, 0, rows); }

void embed(Context&, const EmbedArgs& a) {
  const int64_t C = a.y.cols;
  std::vector<float> row(static_cast<size_t>(C));
  for (int64_t t = 0; t < a.y.rows; ++t) {
    float* y = a.y.row(t);
    read_f32(*a.table, a.ids[t] * C, C, y);
    for (int64_t c = 0; c < C; ++c) y[c] = y[c] * a.scale + (a.type_row ? a.type_row[c] : 0);
    if (!a.position_table) continue;
    read_f32(*a.position_table, a.positions[t] * C, C, row.data());
    for (int64_t c = 0; c < C; ++c) y[c] += row[size_t(c)];
  }
}

void norm(Context&, const NormArgs& a) {
  const int64_t C = a.x.cols;
  for (int64_t t = 0; t < a.x.rows; ++t) {
    const float* x = a.x.row(t);
    double mean = 0, squares = 0;
    if (a.kind == NormKind::layer) {
      for (int64_t c = 0; c < C; ++c) mean += x[c];
      mean /= double(C);
    }
    for (int64_t c = 0; c < C; ++c) squares += (x[c] - mean) * (x[c] - mean);
    const double factor = 1 / std::sqrt(squares / double(C) + a.eps);
    for (int64_t c = 0; c < C; ++c) {
      double v = (x[c] - mean) * factor;
      if (a.weight) v *= a.weight[c];
      if (a.bias) v += a.bias[c];
      if (a.residual.data) v += a.residual.row(t)[c];
      a.y.row(t)[c] = float(v);
    }
  }
}

double activate(Activation activation, double x) {
  switch (activation) {
    case Activation::none: return x;
    case Activation::gelu_erf: return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::gelu_tanh: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
    case Activation::quick_gelu: return x / (1 + std::exp(-1.702 * x));
    case Activation::relu: return x > 0 ? x : 0;
    case Activation::silu: return x / (1 + std::exp(-x));
    case Activation::tanh: return std::tanh(x);
  }
  return x;
}

void linear(Context&, const LinearArgs& a) {
  const PlainWeight& weight = *static_cast<const PlainWeight*>(a.weight);
  const int64_t K = weight.cols, N = weight.gated ? weight.rows / 2 : weight.rows;
  std::vector<float> x(static_cast<size_t>(K));
  std::vector<double> sums(static_cast<size_t>(weight.rows));
  for (int64_t t = 0; t < a.x.rows; ++t) {
    std::memcpy(x.data(), a.x.row(t), size_t(K) * sizeof(float));
    const float scale = weight.format == WeightFormat::i8 ? quantise(x.data(), K) : 1;
    for (int64_t n = 0; n < weight.rows; ++n) {
      double sum = 0;
      for (int64_t k = 0; k < K; ++k) sum += double(x[size_t(k)]) * weight.values[size_t(n * K + k)];
      if (weight.format == WeightFormat::i8) sum *= double(scale) * weight.scale[size_t(n)];
      sums[size_t(n)] = sum + (a.bias ? a.bias[n] : 0);
    }
    for (int64_t n = 0; n < N; ++n) {
      double v = activate(a.activation, sums[size_t(n)]);
      if (weight.gated) v *= sums[size_t(N + n)];
      if (a.residual.data) v += a.residual.row(t)[n];
      a.y.row(t)[n] = float(v);
    }
  }
}

void rope(Context&, const RopeArgs& a) {
  for (int64_t t = 0; t < a.x.rows; ++t)
    for (int h = 0; h < a.heads; ++h) {
      float* x = a.x.row(t) + int64_t(h) * a.head_dim;
      if (a.norm_weight) {
        double squares = 0;
        for (int d = 0; d < a.head_dim; ++d) squares += double(x[d]) * x[d];
        const double factor = 1 / std::sqrt(squares / a.head_dim + a.eps);
        for (int d = 0; d < a.head_dim; ++d) x[d] = float(x[d] * factor * a.norm_weight[d]);
      }
      if (!a.cos) continue;
      const int64_t at = int64_t(a.positions[t]) * a.half;
      for (int d = 0; d < a.half; ++d) {
        const double low = x[d], high = x[a.half + d], cos = a.cos[at + d], sin = a.sin[at + d];
        x[d] = float(low * cos - high * sin);
        x[a.half + d] = float(low * sin + high * cos);
      }
    }
}

void attention(Context&, const AttentionArgs& a) {
  for (int b = 0; b < a.sequences; ++b)
    for (int h = 0; h < a.heads; ++h) {
      const int64_t column = int64_t(h) * a.head_dim, kv_column = int64_t(h / (a.heads / a.kv_heads)) * a.head_dim;
      const int64_t keys = a.kv_offsets[b + 1] - a.kv_offsets[b];
      for (int row = a.q_offsets[b]; row < a.q_offsets[b + 1]; ++row) {
        const int64_t i = a.q_starts[b] + row - a.q_offsets[b];
        std::vector<double> p(static_cast<size_t>(keys), 0);
        double most = -1e300, total = 0;
        auto seen = [&](int64_t j) { return (a.left < 0 || i - j <= a.left) && (a.right < 0 || j - i <= a.right); };
        for (int64_t j = 0; j < keys; ++j) {
          if (!seen(j)) continue;
          const float *q = a.q.row(row) + column, *k = a.k.row(a.kv_offsets[b] + j) + kv_column;
          double score = 0;
          for (int d = 0; d < a.head_dim; ++d) score += double(q[d]) * k[d];
          score *= a.scale;
          if (a.bias) score += a.bias[h * (2 * a.bias_reach + 1) + a.bias_reach + i - j];
          p[size_t(j)] = score;
          most = std::max(most, score);
        }
        for (int64_t j = 0; j < keys; ++j) total += p[size_t(j)] = seen(j) ? std::exp(p[size_t(j)] - most) : 0;
        for (int d = 0; d < a.head_dim; ++d) {
          double sum = 0;
          for (int64_t j = 0; j < keys; ++j) sum += p[size_t(j)] * a.v.row(a.kv_offsets[b] + j)[kv_column + d];
          a.y.row(row)[column + d] = float(sum / total);
        }
      }
    }
}

void gather(Context&, const GatherArgs& a) {
  for (int64_t i = 0; i < a.y.rows; ++i)
    for (int64_t c = 0; c < a.y.cols; ++c) {
      double sum = 0;
      for (int k = 0; k < a.taps; ++k) sum += double(a.x.row(a.rows[i * a.taps + k])[c]) * (a.weights ? a.weights[i * a.taps + k] : 1);
      a.y.row(i)[c] = float(sum);
    }
}

void scatter(Context&, const ScatterArgs& a) {
  for (int64_t i = 0; i < a.x.rows; ++i)
    for (int64_t c = 0; c < a.x.cols; ++c) a.y.row(a.rows[i])[c] = a.x.row(i)[c] + (a.add ? a.y.row(a.rows[i])[c] : 0);
}

void pool(Context&, const PoolArgs& a) {
  for (int64_t b = 0; b < a.y.rows; ++b) {
    const int64_t begin = a.offsets[b], end = a.offsets[b + 1], count = end - begin;
    for (int64_t c = 0; c < a.y.cols; ++c) {
      double sum = 0, weighted = 0, most = a.x.row(begin)[c];
      for (int64_t t = begin; t < end; ++t) {
        const double x = a.x.row(t)[c];
        sum += x;
        weighted += x * double(t - begin + 1);
        most = std::max(most, x);
      }
      double v = 0;
      switch (a.mode) {
        case Pooling::cls: v = a.x.row(begin)[c]; break;
        case Pooling::last: v = a.x.row(end - 1)[c]; break;
        case Pooling::mean: v = sum / double(count); break;
        case Pooling::mean_sqrt_len: v = sum / std::sqrt(double(count)); break;
        case Pooling::max: v = most; break;
        case Pooling::weighted_mean: v = weighted * 2 / (double(count) * double(count + 1)); break;
      }
      a.y.row(b)[c] = float(v);
    }
  }
}

void normalize(Context&, const NormalizeArgs& a) {
  for (int64_t b = 0; b < a.x.rows; ++b) {
    double squares = 0;
    for (int64_t c = 0; c < a.x.cols; ++c) squares += double(a.x.row(b)[c]) * a.x.row(b)[c];
    const double factor = 1 / std::max(std::sqrt(squares), 1e-12);
    for (int64_t c = 0; c < a.x.cols; ++c) a.x.row(b)[c] = float(a.x.row(b)[c] * factor);
  }
}

}  // namespace

const OperationTable& reference_table() {
  static const OperationTable table = [] {
    OperationTable t;
    t.name = "reference";
    t.allocate = allocate;
    t.release = release;
    t.pack = pack;
    t.for_rows = for_rows;
    t.embed = embed;
    t.norm = norm;
    t.linear = linear;
    t.rope = rope;
    t.attention = attention;
    t.gather = gather;
    t.scatter = scatter;
    t.pool = pool;
    t.normalize = normalize;
    return t;
  }();
  return table;
}

}  // namespace conan::cpu
