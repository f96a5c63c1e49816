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

static inline float dot(const float* x, const float* y, int64_t count) {
  F sum = V::zero();
  along(count, [&](int64_t c, int n) { sum = V::fma(load_some(x + c, n), load_some(y + c, n), sum); });
  return V::sum(sum);
}

/// y += a * x
static inline void add_scaled(float* y, float a, const float* x, int64_t count) {
  const F factor = V::set(a);
  along(count, [&](int64_t c, int n) { store_some(y + c, V::fma(factor, load_some(x + c, n), load_some(y + c, n)), n); });
}

/// All queries of one sequence that look at one key head; `scratch` has 2 * keys + 32 floats.
static void attention_backward_head(const AttentionBackwardArgs& args, int b, int kv_head, float* scratch) {
  const AttentionArgs& a = args.forward;
  const int D = a.head_dim, group = a.heads / a.kv_heads;
  const int64_t keys = a.kv_offsets[b + 1] - a.kv_offsets[b], kv_column = int64_t(kv_head) * D, first_key = a.kv_offsets[b];
  float *p = scratch, *dp = scratch + keys + 16;
  for (int64_t j = 0; j < keys; ++j) {
    std::memset(args.dk.row(first_key + j) + kv_column, 0, size_t(D) * sizeof(float));
    std::memset(args.dv.row(first_key + j) + kv_column, 0, size_t(D) * sizeof(float));
  }
  for (int h = kv_head * group; h < (kv_head + 1) * group; ++h) {
    const int64_t column = int64_t(h) * D;
    for (int row = a.q_offsets[b]; row < a.q_offsets[b + 1]; ++row) {
      const int64_t i = a.q_starts[b] + row - a.q_offsets[b];
      const int64_t begin = a.left < 0 ? 0 : std::max<int64_t>(0, i - a.left), end = a.right < 0 ? keys : std::min(keys, i + a.right + 1);
      const float *q = a.q.row(row) + column, *dy = args.dy.row(row) + column;
      const float* bias = a.bias ? a.bias + h * (2 * a.bias_reach + 1) + a.bias_reach + i : nullptr;
      float *dq = args.dq.row(row) + column, most = -3e38f;
      std::memset(dq, 0, size_t(D) * sizeof(float));
      for (int64_t j = begin; j < end; ++j) {
        p[j] = dot(q, a.k.row(first_key + j) + kv_column, D) * a.scale + (bias ? bias[-j] : 0);
        dp[j] = dot(dy, a.v.row(first_key + j) + kv_column, D);
        most = std::max(most, p[j]);
      }
      F total = V::zero();
      along(end - begin, [&](int64_t j, int n) {
        F e = exp(V::sub(load_some(p + begin + j, n), V::set(most)));
        if (n < W) e = V::where_ge(V::set(float(n) - 0.5f), V::iota(), e, V::zero());
        store_some(p + begin + j, e, n);
        total = V::add(total, e);
      });
      const float inverse = 1 / V::sum(total), mean = dot(p + begin, dp + begin, end - begin) * inverse;
      for (int64_t j = begin; j < end; ++j) {
        const float probability = p[j] * inverse, ds = probability * (dp[j] - mean);
        if (args.dbias) args.dbias[h * (2 * a.bias_reach + 1) + a.bias_reach + i - j] += ds;
        add_scaled(args.dv.row(first_key + j) + kv_column, probability, dy, D);
        add_scaled(args.dk.row(first_key + j) + kv_column, ds * a.scale, q, D);
        add_scaled(dq, ds * a.scale, a.k.row(first_key + j) + kv_column, D);
      }
    }
  }
}

}  // namespace conan::cpu::CONAN_ISA
