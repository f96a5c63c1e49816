// The definition of every operation: plain loops, sums in double, one thread. Fast backends are measured against it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "cpu/cpu.h"

namespace conan::cpu {

namespace {

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

void fill(const WeightSource& source, WeightFormat format, PlainWeight* weight) {
  weight->rows = 0;
  weight->scale.clear();
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
}

std::unique_ptr<Weight> pack(Context&, const WeightSource& source, WeightFormat format) {
  auto weight = std::make_unique<PlainWeight>();
  fill(source, format, weight.get());
  return weight;
}

void repack(Context&, const WeightSource& source, Weight& weight) { fill(source, weight.format, static_cast<PlainWeight*>(&weight)); }

void pack_transposed(Context&, const Weight& from, std::unique_ptr<Weight>& into) {
  const auto& weight = static_cast<const PlainWeight&>(from);
  std::vector<float> turned(weight.values.size());
  for (int64_t n = 0; n < weight.rows; ++n)
    for (int64_t k = 0; k < weight.cols; ++k)
      turned[size_t(k * weight.rows + n)] = weight.values[size_t(n * weight.cols + k)] * (weight.scale.empty() ? 1 : weight.scale[size_t(n)]);
  if (!into) into = std::make_unique<PlainWeight>();
  fill({"transposed", {{turned.data(), Dtype::f32, {weight.cols, weight.rows}}}, false}, weight.format, static_cast<PlainWeight*>(into.get()));
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
        const double low = x[d], high = x[a.half + d], cos = a.cos[at + d], sin = a.inverse ? -a.sin[at + d] : a.sin[at + d];
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
    for (int64_t c = 0; c < a.x.cols; ++c) {
      float& to = a.y.row(a.rows ? a.rows[i] : i)[c];
      to = a.x.row(i)[c] + (a.add ? to : 0);
    }
}

void unpack(Context&, const UnpackArgs& a) {
  for (int64_t t = 0; t < a.y.rows; ++t)
    for (int64_t c = 0; c < a.y.cols; ++c) a.y.row(t)[c] = a.table[c / (a.y.cols / a.channels) * 256 + a.x[t * a.y.cols + c]];
}

void narrow(Context&, const NarrowArgs& a) {
  for (int64_t t = 0; t < a.x.rows; ++t)
    for (int64_t c = 0; c < a.x.cols; ++c) a.y.row(t)[c] = f32_to_bf16(a.x.row(t)[c]);
}

void widen(Context&, const WidenArgs& a) {
  for (int64_t t = 0; t < a.x.rows; ++t)
    for (int64_t c = 0; c < a.x.cols; ++c) a.y.row(t)[c] = bf16_to_f32(a.x.row(t)[c]);
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

// ---- backward

void norm_backward(Context& context, const NormBackwardArgs& a) {
  if (a.groups > 1) {
    for (int g = 0; g < a.groups; ++g) norm_backward(context, a.group(g));
    return;
  }
  const int64_t C = a.x.cols;
  for (int64_t t = 0; t < a.x.rows; ++t) {
    const float *x = a.x.row(t), *dy = a.dy.row(t);
    double mean = 0, squares = 0;
    if (a.kind == NormKind::layer) {
      for (int64_t c = 0; c < C; ++c) mean += x[c];
      mean /= double(C);
    }
    for (int64_t c = 0; c < C; ++c) squares += (x[c] - mean) * (x[c] - mean);
    const double factor = 1 / std::sqrt(squares / double(C) + a.eps);
    double sum = 0, along = 0;  // means of the gradient by the normalised row, and of its product with that row
    for (int64_t c = 0; c < C; ++c) {
      const double g = double(dy[c]) * (a.weight ? a.weight[c] : 1), hat = (x[c] - mean) * factor;
      sum += g / double(C);
      along += g * hat / double(C);
      if (a.dweight) a.dweight[c] += float(dy[c] * hat);
      if (a.dbias) a.dbias[c] += dy[c];
    }
    if (a.kind == NormKind::rms) sum = 0;
    for (int64_t c = 0; a.dx.data && c < C; ++c) {
      const double g = double(dy[c]) * (a.weight ? a.weight[c] : 1), hat = (x[c] - mean) * factor;
      float& dx = a.dx.row(t)[c];
      dx = float(factor * (g - sum - hat * along) + (a.add ? dx : 0));
    }
  }
}

double derivative(Activation activation, double x) {
  const double pi = 3.14159265358979323846;
  auto sigmoid = [](double v) { return 1 / (1 + std::exp(-v)); };
  switch (activation) {
    case Activation::none: return 1;
    case Activation::gelu_erf: return 0.5 * (1 + std::erf(x / std::sqrt(2.0))) + x * std::exp(-x * x / 2) / std::sqrt(2 * pi);
    case Activation::gelu_tanh: {
      const double s = sigmoid(2 * std::sqrt(2 / pi) * (x + 0.044715 * x * x * x));
      return s + x * s * (1 - s) * 2 * std::sqrt(2 / pi) * (1 + 3 * 0.044715 * x * x);
    }
    case Activation::quick_gelu: {
      const double s = sigmoid(1.702 * x);
      return s + 1.702 * x * s * (1 - s);
    }
    case Activation::relu: return x > 0 ? 1 : 0;
    case Activation::silu: {
      const double s = sigmoid(x);
      return s * (1 + x * (1 - s));
    }
    case Activation::tanh: return 1 - std::tanh(x) * std::tanh(x);
  }
  return 1;
}

void activate(Context&, const ActivateArgs& a) {
  for (int64_t t = 0; t < a.y.rows; ++t)
    for (int64_t n = 0; n < a.y.cols; ++n) a.y.row(t)[n] = float(activate(a.activation, a.x.row(t)[n]) * (a.gated ? a.x.row(t)[a.y.cols + n] : 1));
}

void activate_backward(Context&, const ActivateBackwardArgs& a) {
  const int64_t N = a.dy.cols;
  for (int64_t t = 0; t < a.dy.rows; ++t)
    for (int64_t n = 0; n < N; ++n) {
      const double x = a.x.row(t)[n], value = a.gated ? a.x.row(t)[N + n] : 1, dy = a.dy.row(t)[n];
      if (a.gated) a.dx.row(t)[N + n] = float(dy * activate(a.activation, x));
      a.dx.row(t)[n] = float(dy * value * derivative(a.activation, x));
    }
}

void linear_backward(Context&, const LinearBackwardArgs& a) {
  for (int64_t n = 0; n < a.dy.cols; ++n) {
    double bias = 0;
    for (int64_t t = 0; t < a.dy.rows; ++t) bias += a.dy.row(t)[n];
    if (a.dbias) a.dbias[n] += float(bias);
    for (int64_t k = 0; a.dw.data && k < a.x.cols; ++k) {
      double sum = 0;
      for (int64_t t = 0; t < a.dy.rows; ++t) sum += double(a.dy.row(t)[n]) * a.x.row(t)[k];
      a.dw.row(n)[k] += float(sum);
    }
  }
}

void low_rank_backward(Context&, const LowRankBackwardArgs& a) {
  const auto at = [](const Bf16Matrix& m, int64_t t, int64_t c) { return double(bf16_to_f32(m.row(t)[c])); };
  for (const LowRankBackwardArgs::Part& p : a.parts)
    for (int64_t t = 0; t < a.dy.rows; ++t)
      for (int64_t r = 0; r < p.rank; ++r) {
        double through_a = 0, through_b = 0;
        for (int64_t k = 0; k < a.x.cols; ++k) through_a += at(a.x, t, k) * p.a[r * a.x.cols + k];
        for (int64_t n = 0; n < p.rows; ++n) through_b += at(a.dy, t, p.first + n) * p.b[n * p.rank + r];
        for (int64_t k = 0; k < a.x.cols; ++k) p.da[r * a.x.cols + k] += float(p.scale * through_b * at(a.x, t, k));
        for (int64_t n = 0; n < p.rows; ++n) p.db[n * p.rank + r] += float(p.scale * through_a * at(a.dy, t, p.first + n));
      }
}

void attention_backward(Context&, const AttentionBackwardArgs& args) {
  const AttentionArgs& a = args.forward;
  for (const Matrix* m : {&args.dq, &args.dk, &args.dv})
    for (int64_t t = 0; t < m->rows; ++t) std::fill_n(m->row(t), m->cols, 0.f);
  for (int b = 0; b < a.sequences; ++b)
    for (int h = 0; h < a.heads; ++h) {
      const int64_t column = int64_t(h) * a.head_dim, kv_column = int64_t(h / (a.heads / a.kv_heads)) * a.head_dim;
      const int64_t keys = a.kv_offsets[b + 1] - a.kv_offsets[b];
      for (int row = a.q_offsets[b]; row < a.q_offsets[b + 1]; ++row) {
        const int64_t i = a.q_starts[b] + row - a.q_offsets[b];
        auto seen = [&](int64_t j) { return (a.left < 0 || i - j <= a.left) && (a.right < 0 || j - i <= a.right); };
        auto bias_at = [&](int64_t j) { return h * (2 * a.bias_reach + 1) + a.bias_reach + i - j; };
        const float *q = a.q.row(row) + column, *dy = args.dy.row(row) + column;
        std::vector<double> p(static_cast<size_t>(keys), 0), dp(static_cast<size_t>(keys), 0);
        double most = -1e300, total = 0, mean = 0;
        for (int64_t j = 0; j < keys; ++j) {
          if (!seen(j)) continue;
          const float *k = a.k.row(a.kv_offsets[b] + j) + kv_column, *v = a.v.row(a.kv_offsets[b] + j) + kv_column;
          for (int d = 0; d < a.head_dim; ++d) p[size_t(j)] += double(q[d]) * k[d], dp[size_t(j)] += double(dy[d]) * v[d];
          p[size_t(j)] = p[size_t(j)] * a.scale + (a.bias ? a.bias[bias_at(j)] : 0);
          most = std::max(most, p[size_t(j)]);
        }
        for (int64_t j = 0; j < keys; ++j) total += p[size_t(j)] = seen(j) ? std::exp(p[size_t(j)] - most) : 0;
        for (int64_t j = 0; j < keys; ++j) mean += (p[size_t(j)] /= total) * dp[size_t(j)];
        for (int64_t j = 0; j < keys; ++j) {
          if (!seen(j)) continue;
          const double ds = p[size_t(j)] * (dp[size_t(j)] - mean);
          if (args.dbias) args.dbias[bias_at(j)] += float(ds);
          const int64_t key = a.kv_offsets[b] + j;
          for (int d = 0; d < a.head_dim; ++d) {
            args.dq.row(row)[column + d] += float(ds * a.scale * a.k.row(key)[kv_column + d]);
            args.dk.row(key)[kv_column + d] += float(ds * a.scale * q[d]);
            args.dv.row(key)[kv_column + d] += float(p[size_t(j)] * dy[d]);
          }
        }
      }
    }
}

}  // namespace

void contrast(Context&, const ContrastArgs& a) {
  std::vector<char> is_positive(static_cast<size_t>(a.scores.cols));
  for (int64_t i = 0; i < a.scores.rows; ++i) {
    const float* s = a.scores.row(i);
    float* y = a.y.row(i);
    std::fill_n(y, a.y.cols, 0.f);
    a.losses[i] = 0;
    std::fill(is_positive.begin(), is_positive.end(), 0);
    for (int32_t p = a.offsets[i]; p < a.offsets[i + 1]; ++p) is_positive[size_t(a.positives[p])] = 1;
    for (int32_t p = a.offsets[i]; p < a.offsets[i + 1]; ++p) {
      const int64_t own = a.positives[p];
      const auto counts = [&](int64_t d) { return d == own || (!is_positive[size_t(d)] && (a.margin < 0 || s[d] <= s[own] + a.margin)); };
      double most = s[own], sum = 0;
      for (int64_t d = 0; d < a.scores.cols; ++d)
        if (counts(d)) most = std::max<double>(most, s[d]);
      const auto power = [&](int64_t d) { return std::exp((s[d] - most) / a.temperature); };
      for (int64_t d = 0; d < a.scores.cols; ++d)
        if (counts(d)) sum += power(d);
      const double weight = 1.0 / (a.offsets[i + 1] - a.offsets[i]);
      a.losses[i] += weight * (std::log(sum) + (most - s[own]) / a.temperature);
      for (int64_t d = 0; d < a.scores.cols; ++d)
        if (counts(d)) y[d] += float(a.factor * weight / a.temperature * (power(d) / sum - (d == own)));
    }
  }
}

void embed_backward(Context&, const EmbedBackwardArgs& a) {
  for (int64_t t = 0; t < a.dy.rows; ++t)
    for (int64_t c = 0; a.ids[t] >= 0 && c < a.dy.cols; ++c) a.dtable.row(a.ids[t])[c] += a.dy.row(t)[c] * a.scale;
}

void pool_backward(Context&, const PoolBackwardArgs& a) {
  for (int64_t b = 0; b < a.dy.rows; ++b) {
    const int64_t begin = a.offsets[b], end = a.offsets[b + 1], count = end - begin;
    for (int64_t t = begin; t < end; ++t) {
      float weight = 0;
      switch (a.mode) {
        case Pooling::cls: weight = t == begin; break;
        case Pooling::last: weight = t == end - 1; break;
        case Pooling::mean: weight = 1 / float(count); break;
        case Pooling::mean_sqrt_len: weight = 1 / std::sqrt(float(count)); break;
        case Pooling::weighted_mean: weight = float(t - begin + 1) * 2 / (float(count) * float(count + 1)); break;
        case Pooling::max: break;
      }
      for (int64_t c = 0; c < a.dy.cols; ++c) a.dx.row(t)[c] = a.dy.row(b)[c] * weight;
    }
    if (a.mode != Pooling::max) continue;
    for (int64_t c = 0; c < a.dy.cols; ++c) {
      int64_t most = begin;  // the first of equals
      for (int64_t t = begin; t < end; ++t)
        if (a.x.row(t)[c] > a.x.row(most)[c]) most = t;
      a.dx.row(most)[c] = a.dy.row(b)[c];
    }
  }
}

void normalize_backward(Context&, const NormalizeBackwardArgs& a) {
  for (int64_t b = 0; b < a.x.rows; ++b) {
    double squares = 0, along = 0;
    for (int64_t c = 0; c < a.x.cols; ++c) squares += double(a.x.row(b)[c]) * a.x.row(b)[c];
    const double length = std::sqrt(squares), factor = 1 / std::max(length, 1e-12);
    for (int64_t c = 0; c < a.x.cols; ++c) along += double(a.x.row(b)[c]) * factor * a.dy.row(b)[c];
    if (length < 1e-12) along = 0;  // the divisor does not move
    for (int64_t c = 0; c < a.x.cols; ++c) a.dy.row(b)[c] = float(factor * (a.dy.row(b)[c] - a.x.row(b)[c] * factor * along));
  }
}

void adamw(Context&, const AdamWArgs& a) {
  for (int64_t i = 0; i < a.count; ++i) {
    const double g = double(a.scale) * a.gradient[i];
    const double first = a.beta1 * double(a.first[i]) + (1 - double(a.beta1)) * g,
                 second = a.beta2 * double(a.second[i]) + (1 - double(a.beta2)) * g * g;
    a.value[i] = float(a.decay * double(a.value[i]) - a.rate * first / (std::sqrt(second) / a.correction + a.epsilon));
    a.first[i] = float(first), a.second[i] = float(second), a.gradient[i] = 0;
  }
}

void squares(Context&, const SquaresArgs& a) {
  *a.sum = 0;
  for (const std::span<const float>& values : a.values)
    for (const float x : values) *a.sum += double(x) * x;
}

const OperationTable& reference_table() {
  static const OperationTable table = [] {
    OperationTable t;
    t.name = "reference";
    t.allocate = [](const OperationTable&, size_t bytes) { return allocate(bytes); };
    t.release = [](const OperationTable&, void* memory, size_t bytes) { release(memory, bytes); };
    t.pack = pack;
    t.for_rows = for_rows;
    t.embed = embed;
    t.norm = norm;
    t.linear = linear;
    t.rope = rope;
    t.attention = attention;
    t.gather = gather;
    t.scatter = scatter;
    t.narrow = narrow;
    t.unpack = unpack;
    t.widen = widen;
    t.pool = pool;
    t.normalize = normalize;
    t.repack = repack;
    t.pack_transposed = pack_transposed;
    t.norm_backward = norm_backward;
    t.activate = activate;
    t.activate_backward = activate_backward;
    t.linear_backward = linear_backward;
    t.low_rank_backward = low_rank_backward;
    t.attention_backward = attention_backward;
    t.embed_backward = embed_backward;
    t.pool_backward = pool_backward;
    t.normalize_backward = normalize_backward;
    t.contrast = contrast;
    t.adamw = adamw;
    t.squares = squares;
    return t;
  }();
  return table;
}

}  // namespace conan::cpu
