// Gradients on rows and of attention. Everything here is a plain sum along one row, or down the rows in their order.
namespace conan::cpu::CONAN_ISA {

/// 1 / (1 + e^-x) and its parts are those of math.inl; derivatives of the activations by x.
struct IdentitySlope {
  F operator()(F) const { return V::set(1.f); }
};
struct ReluSlope {
  F operator()(F x) const { return V::where_ge(V::zero(), x, V::zero(), V::set(1.f)); }
};
struct SiluSlope {
  F operator()(F x) const {
    F s = sigmoid(x);
    return V::mul(s, V::fma(x, V::sub(V::set(1.f), s), V::set(1.f)));
  }
};
struct QuickGeluSlope {
  F operator()(F x) const {
    F s = sigmoid(V::mul(x, V::set(1.702f)));
    return V::fma(V::mul(V::mul(x, V::set(1.702f)), s), V::sub(V::set(1.f), s), s);
  }
};
struct TanhSlope {
  F operator()(F x) const {
    F t = Tanh{}(x);
    return V::sub(V::set(1.f), V::mul(t, t));
  }
};
struct GeluTanhSlope {
  F operator()(F x) const {
    F square = V::mul(x, x), cubic = V::fma(V::mul(square, x), V::set(0.044715f), x);
    F s = sigmoid(V::mul(cubic, V::set(1.5957691216057308f)));
    F inner = V::mul(V::set(1.5957691216057308f), V::fma(square, V::set(3 * 0.044715f), V::set(1.f)));
    return V::fma(V::mul(V::mul(x, inner), s), V::sub(V::set(1.f), s), s);
  }
};
struct GeluErfSlope {  // Phi(x) + x phi(x), Phi by the erf of GeluErf's fallback
  F operator()(F x) const {
    F z = V::abs(V::mul(x, V::set(0.70710678118654752f)));
    F t = V::div(V::set(1.f), V::fma(z, V::set(0.3275911f), V::set(1.f)));
    F p = V::set(1.061405429f);
    p = V::fma(p, t, V::set(-1.453152027f));
    p = V::fma(p, t, V::set(1.421413741f));
    p = V::fma(p, t, V::set(-0.284496736f));
    p = V::fma(p, t, V::set(0.254829592f));
    F density = exp(V::sub(V::zero(), V::mul(z, z)));
    F erf = V::copy_sign(V::sub(V::set(1.f), V::mul(V::mul(p, t), density)), x);
    return V::fma(V::mul(x, density), V::set(0.3989422804014327f), V::fma(erf, V::set(0.5f), V::set(0.5f)));
  }
};

template <class Body>
static inline void with_slope(Activation activation, const Body& body) {
  switch (activation) {
    case Activation::none: return body(Identity{}, IdentitySlope{});
    case Activation::gelu_erf: return body(GeluErf{}, GeluErfSlope{});
    case Activation::gelu_tanh: return body(GeluTanh{}, GeluTanhSlope{});
    case Activation::quick_gelu: return body(QuickGelu{}, QuickGeluSlope{});
    case Activation::relu: return body(Relu{}, ReluSlope{});
    case Activation::silu: return body(Silu{}, SiluSlope{});
    case Activation::tanh: return body(Tanh{}, TanhSlope{});
  }
}

static void activate_rows(const ActivateArgs& a) {
  const int64_t N = a.y.cols;
  with_slope(a.activation, [&](auto function, auto) {
    for (int64_t t = 0; t < a.y.rows; ++t)
      along(N, [&](int64_t c, int n) {
        F y = function(load_some(a.x.row(t) + c, n));
        if (a.gated) y = V::mul(y, load_some(a.x.row(t) + N + c, n));
        store_some(a.y.row(t) + c, y, n);
      });
  });
}

static void activate_backward_rows(const ActivateBackwardArgs& a) {
  const int64_t N = a.dy.cols;
  with_slope(a.activation, [&](auto function, auto slope) {
    for (int64_t t = 0; t < a.dy.rows; ++t)
      along(N, [&](int64_t c, int n) {
        F x = load_some(a.x.row(t) + c, n), dy = load_some(a.dy.row(t) + c, n), dx = V::mul(dy, slope(x));
        if (a.gated) {
          F value = load_some(a.x.row(t) + N + c, n);
          store_some(a.dx.row(t) + N + c, V::mul(dy, function(x)), n);
          dx = V::mul(dx, value);
        }
        store_some(a.dx.row(t) + c, dx, n);
      });
  });
}

/// `statistics` [T, 2] takes every row's mean and factor.
static void norm_backward_rows(const NormBackwardArgs& a, float* statistics) {
  const int64_t C = a.x.cols;
  for (int64_t t = 0; t < a.x.rows; ++t) {
    const float *x = a.x.row(t), *dy = a.dy.row(t);
    float mean = 0;
    if (a.kind == NormKind::layer) {
      F sum = V::zero();
      along(C, [&](int64_t c, int n) { sum = V::add(sum, load_some(x + c, n)); });
      mean = V::sum(sum) / float(C);
    }
    F squares = V::zero();
    along(C, [&](int64_t c, int n) {
      F v = V::sub(load_some(x + c, n), V::set(mean));
      if (n < W) v = V::where_ge(V::set(float(n) - 0.5f), V::iota(), v, V::zero());
      squares = V::fma(v, v, squares);
    });
    const float factor = 1 / std::sqrt(V::sum(squares) / float(C) + a.eps);
    statistics[2 * t] = mean;
    statistics[2 * t + 1] = factor;
    if (!a.dx.data) continue;
    auto gradient = [&](int64_t c, int n) {
      F g = load_some(dy + c, n);
      return a.weight ? V::mul(g, load_some(a.weight + c, n)) : g;
    };
    auto hat = [&](int64_t c, int n) { return V::mul(V::sub(load_some(x + c, n), V::set(mean)), V::set(factor)); };
    F sum = V::zero(), product = V::zero();
    along(C, [&](int64_t c, int n) {
      F g = gradient(c, n);  // zero beyond the end
      sum = V::add(sum, g);
      product = V::fma(g, hat(c, n), product);
    });
    const F shift = V::set(a.kind == NormKind::layer ? V::sum(sum) / float(C) : 0), tilt = V::set(V::sum(product) / float(C));
    along(C, [&](int64_t c, int n) {
      F dx = V::mul(V::set(factor), V::sub(V::sub(gradient(c, n), shift), V::mul(hat(c, n), tilt)));
      if (a.add) dx = V::add(dx, load_some(a.dx.row(t) + c, n));
      store_some(a.dx.row(t) + c, dx, n);
    });
  }
}

/// Columns [first, first + count) of dweight and dbias, down all rows.
static void norm_backward_columns(const NormBackwardArgs& a, const float* statistics, int64_t first, int64_t count) {
  for (int64_t t = 0; t < a.x.rows; ++t) {
    const F mean = V::set(statistics[2 * t]), factor = V::set(statistics[2 * t + 1]);
    along(count, [&](int64_t i, int n) {
      const int64_t c = first + i;
      F dy = load_some(a.dy.row(t) + c, n);
      if (a.dweight) {
        F hat = V::mul(V::sub(load_some(a.x.row(t) + c, n), mean), factor);
        store_some(a.dweight + c, V::fma(dy, hat, load_some(a.dweight + c, n)), n);
      }
      if (a.dbias) store_some(a.dbias + c, V::add(dy, load_some(a.dbias + c, n)), n);
    });
  }
}

/// Rows as a panel of N columns: out[d][n] = rows[n][d], zero beyond the last row.
template <int N>
static void turn_into_panel(const Matrix& rows, float* out) {
  if (rows.rows < N) std::memset(out, 0, size_t(rows.cols * N) * sizeof(float));
  transpose(rows, {out, rows.cols, rows.rows, N});
}

/// y[i] += sum over n of weights[i][n] * x[n], for `count` rows x of D and any number of rows y; weights have N columns.
template <int N>
static void add_weighted(const float* weights, int64_t rows, const float* x, int64_t x_stride, int count, int D, float* y, int64_t y_stride,
                         float* scratch) {
  float *panel = scratch, *out = scratch + N * NR;
  for (int d = 0; d < D; d += NR) {
    const int width = std::min(NR, D - d), low = std::min(W, width), high = width - low;
    for (int n = 0; n < count; ++n) {
      V::store(panel + n * NR, load_some(x + n * x_stride + d, low));
      V::store(panel + n * NR + W, high > 0 ? load_some(x + n * x_stride + d + W, high) : V::zero());
    }
    for (int64_t first = 0; first < rows; first += kBlock) {
      const int64_t some = std::min<int64_t>(kBlock, rows - first);
      multiply<PlainMath, false, true>(reinterpret_cast<const uint32_t*>(weights + first * N), N, panel, count, out, some);
      for (int64_t i = 0; i < some; ++i) {
        float* to = y + (first + i) * y_stride + d;
        store_some(to, V::add(load_some(to, low), V::load(out + i * NR)), low);
        if (high > 0) store_some(to + W, V::add(load_some(to + W, high), V::load(out + i * NR + W)), high);
      }
    }
  }
}

/// Queries [row, row + count) of one head, count <= N: keys down and queries across, as in attention(). With P the probabilities,
/// dS = P (dy V^T - sum of P (dy V^T)) and dq = dS K, dk += dS^T q, dv += P^T dy.
template <bool kWide>
static void attention_backward_panel(const AttentionBackwardArgs& args, int b, int h, int row, int count, float* scratch) {
  constexpr int N = kWide ? NR : W, vectors = N / W;
  const AttentionArgs& a = args.forward;
  const int D = a.head_dim;
  const int64_t column = int64_t(h) * D, kv_column = int64_t(h / (a.heads / a.kv_heads)) * D, position = a.q_starts[b] + row - a.q_offsets[b];
  const int64_t all = a.kv_offsets[b + 1] - a.kv_offsets[b];
  const int64_t begin = a.left < 0 ? 0 : std::max<int64_t>(0, position - a.left);
  const int64_t end = a.right < 0 ? all : std::min<int64_t>(all, position + count + a.right), keys = end - begin;
  const Matrix q = a.q.slice(row, count).columns(column, D), dy = args.dy.slice(row, count).columns(column, D);
  const float *k = a.k.row(a.kv_offsets[b] + begin) + kv_column, *v = a.v.row(a.kv_offsets[b] + begin) + kv_column;
  const auto words = [](const float* p) { return reinterpret_cast<const uint32_t*>(p); };

  float *p = scratch, *ds = p + keys * N, *panel = ds + keys * N, *more = panel + D * N;  // more: max of D, N + kBlock rows of NR
  turn_into_panel<N>(q, panel);
  multiply<PlainMath, false, kWide>(words(k), a.k.stride, panel, D, p, keys);
  turn_into_panel<N>(dy, panel);
  multiply<PlainMath, false, kWide>(words(v), a.v.stride, panel, D, ds, keys);

  const float* bias = a.bias ? a.bias + h * (2 * a.bias_reach + 1) + a.bias_reach + position - begin : nullptr;
  for (int j = 0; j < vectors; ++j) {
    const F place = V::add(V::iota(), V::set(float(j * W)));  // of the query, relative to `position`: exact in f32
    F most = V::set(kMasked);
    for (int64_t i = 0; i < keys; ++i) {
      float* at = p + i * N + j * W;
      F x = V::mul(V::load(at), V::set(a.scale));
      if (bias) x = V::add(x, V::load(bias - i + j * W));
      const int64_t key = begin + i - position;
      if (a.left >= 0) x = V::where_ge(V::set(float(key + a.left)), place, x, V::set(kMasked));
      if (a.right >= 0) x = V::where_ge(place, V::set(float(key - a.right)), x, V::set(kMasked));
      V::store(at, x);
      most = V::max(x, most);
    }
    F total = V::zero(), mean = V::zero();
    for (int64_t i = 0; i < keys; ++i) {
      const F e = exp(V::sub(V::load(p + i * N + j * W), most));
      V::store(p + i * N + j * W, e);
      total = V::add(total, e);
      mean = V::fma(e, V::load(ds + i * N + j * W), mean);
    }
    const F inverse = V::div(V::set(1.f), total);
    mean = V::mul(mean, inverse);
    for (int64_t i = 0; i < keys; ++i) {
      const int64_t at = i * N + j * W;
      const F probability = V::mul(V::load(p + at), inverse);
      V::store(p + at, probability);
      V::store(ds + at, V::mul(probability, V::sub(V::load(ds + at), mean)));
    }
  }
  if (args.dbias) {
    float* dbias = args.dbias + h * (2 * a.bias_reach + 1) + a.bias_reach + position - begin;
    for (int64_t i = 0; i < keys; ++i)
      for (int n = 0; n < count; ++n) dbias[n - i] += ds[i * N + n];
  }
  for (int64_t i = 0; i < keys * N; i += W) V::store(ds + i, V::mul(V::load(ds + i), V::set(a.scale)));

  multiply<PlainMath, true, kWide>(words(k), a.k.stride, ds, keys, more, D);
  transpose({more, D, count, N}, args.dq.slice(row, count).columns(column, D));
  const int64_t first = a.kv_offsets[b] + begin;
  add_weighted<N>(p, keys, dy.data, dy.stride, count, D, args.dv.row(first) + kv_column, args.dv.stride, more);
  add_weighted<N>(ds, keys, q.data, q.stride, count, D, args.dk.row(first) + kv_column, args.dk.stride, more);
}

/// Floats of scratch that attention_backward_head takes.
static int64_t attention_backward_scratch(int64_t keys, int head_dim) {
  return 2 * keys * NR + head_dim * NR + std::max<int64_t>(head_dim, NR + kBlock) * NR;
}

/// All queries of one sequence that look at one key head.
static void attention_backward_head(const AttentionBackwardArgs& args, int b, int kv_head, float* scratch) {
  const AttentionArgs& a = args.forward;
  const int D = a.head_dim, group = a.heads / a.kv_heads;
  for (int64_t t = a.kv_offsets[b]; t < a.kv_offsets[b + 1]; ++t) {
    std::memset(args.dk.row(t) + int64_t(kv_head) * D, 0, size_t(D) * sizeof(float));
    std::memset(args.dv.row(t) + int64_t(kv_head) * D, 0, size_t(D) * sizeof(float));
  }
  for (int h = kv_head * group; h < (kv_head + 1) * group; ++h)
    for (int row = a.q_offsets[b]; row < a.q_offsets[b + 1]; row += NR) {
      const int count = std::min(NR, a.q_offsets[b + 1] - row);
      if (count <= W) attention_backward_panel<false>(args, b, h, row, count, scratch);
      else attention_backward_panel<true>(args, b, h, row, count, scratch);
    }
}

// ---- the optimizer: plain loops, which the compiler turns into those of the instruction set

static void adamw_span(const AdamWArgs& a) {
  float* __restrict value = a.value, * __restrict gradient = a.gradient, * __restrict first = a.first, * __restrict second = a.second;
  const float inverse = 1 / a.correction;
  for (int64_t i = 0; i < a.count; ++i) {
    const float g = a.scale * gradient[i];
    first[i] = a.beta1 * first[i] + (1 - a.beta1) * g;
    second[i] = a.beta2 * second[i] + (1 - a.beta2) * g * g;
    value[i] = a.decay * value[i] - a.rate * first[i] / (std::sqrt(second[i]) * inverse + a.epsilon);
    gradient[i] = 0;
  }
}

static double squares_span(const float* values, int64_t count) {
  double sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (int k = 0; k < 8; ++k) sums[k] += double(values[i + k]) * values[i + k];
  double sum = 0;
  for (; i < count; ++i) sum += double(values[i]) * values[i];
  for (const double part : sums) sum += part;
  return sum;
}

}  // namespace conan::cpu::CONAN_ISA
