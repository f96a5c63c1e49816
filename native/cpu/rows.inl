// Operations on one row (token or vector) at a time: embedding, norms, rotary positions, pooling.
namespace conan::cpu::CONAN_ISA {

/// body(i, n): n = W except at the end of the row.
template <class Body>
static inline void along(int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + W <= count; i += W) body(i, W);
  if (i < count) body(i, int(count - i));
}

static void norm_rows(const NormArgs& a) {
  const int64_t C = a.x.cols;
  for (int64_t t = 0; t < a.x.rows; ++t) {
    const float* x = a.x.row(t);
    float* y = a.y.row(t);
    const float* residual = a.residual.data ? a.residual.row(t) : nullptr;
    F mean = V::zero();
    if (a.kind == NormKind::layer) {
      F s0 = V::zero(), s1 = V::zero();
      int64_t i = 0;
      for (; i + 2 * W <= C; i += 2 * W) s0 = V::add(s0, V::load(x + i)), s1 = V::add(s1, V::load(x + i + W));
      for (; i < C; i += W) s0 = V::add(s0, load_some(x + i, int(std::min<int64_t>(W, C - i))));
      mean = V::set(V::sum(V::add(s0, s1)) / float(C));
    }
    F q0 = V::zero(), q1 = V::zero();
    int64_t i = 0;
    for (; i + 2 * W <= C; i += 2 * W) {
      F a0 = V::sub(V::load(x + i), mean), a1 = V::sub(V::load(x + i + W), mean);
      q0 = V::fma(a0, a0, q0);
      q1 = V::fma(a1, a1, q1);
    }
    for (; i < C; i += W) {
      const int n = int(std::min<int64_t>(W, C - i));
      F a0 = n == W ? V::sub(V::load(x + i), mean) : V::where_ge(V::set(float(n) - 0.5f), V::iota(), V::sub(V::load_n(x + i, n), mean), V::zero());
      q0 = V::fma(a0, a0, q0);
    }
    const F factor = V::set(1.f / std::sqrt(V::sum(V::add(q0, q1)) / float(C) + a.eps));
    along(C, [&](int64_t c, int n) {
      F v = V::mul(V::sub(load_some(x + c, n), mean), factor);
      if (a.weight) v = V::mul(v, load_some(a.weight + c, n));
      if (a.bias) v = V::add(v, load_some(a.bias + c, n));
      if (residual) v = V::add(v, load_some(residual + c, n));
      store_some(y + c, v, n);
    });
  }
}

static void narrow_rows(const NarrowArgs& a) {
  for (int64_t t = 0; t < a.x.rows; ++t) {
    const float* x = a.x.row(t);
    uint16_t* y = a.y.row(t);
    for (int64_t c = 0; c < a.x.cols; ++c) y[c] = f32_to_bf16(x[c]);
  }
}

static void widen_rows(const WidenArgs& a) {
  for (int64_t t = 0; t < a.x.rows; ++t) {
    const uint16_t* x = a.x.row(t);
    float* y = a.y.row(t);
    for (int64_t c = 0; c < a.x.cols; ++c) y[c] = bf16_to_f32(x[c]);
  }
}

static void rope_rows(const RopeArgs& a) {
  for (int64_t t = 0; t < a.x.rows; ++t) {
    const int64_t at = a.cos ? int64_t(a.positions[t]) * a.half : 0;
    for (int h = 0; h < a.heads; ++h) {
      float* x = a.x.row(t) + int64_t(h) * a.head_dim;
      if (a.norm_weight) {
        F squares = V::zero();
        along(a.head_dim, [&](int64_t c, int n) {
          F v = load_some(x + c, n);
          squares = V::fma(v, v, squares);
        });
        const F factor = V::set(1.f / std::sqrt(V::sum(squares) / float(a.head_dim) + a.eps));
        along(a.head_dim,
              [&](int64_t c, int n) { store_some(x + c, V::mul(V::mul(load_some(x + c, n), factor), load_some(a.norm_weight + c, n)), n); });
      }
      if (!a.cos) continue;
      along(a.half, [&](int64_t c, int n) {
        F low = load_some(x + c, n), high = load_some(x + a.half + c, n);
        F cos = load_some(a.cos + at + c, n), sin = load_some(a.sin + at + c, n);
        if (a.inverse) sin = V::sub(V::zero(), sin);
        store_some(x + c, V::sub(V::mul(low, cos), V::mul(high, sin)), n);
        store_some(x + a.half + c, V::fma(low, sin, V::mul(high, cos)), n);
      });
    }
  }
}

/// A row of an embedding table, widened.
static inline void read_row(const TensorView& table, int64_t row, float* out) {
  const int64_t C = table.shape[1];
  const char* p = static_cast<const char*>(table.data) + size_t(row * C) * dtype_size(table.dtype);
  if (table.dtype == Dtype::f32) {
    std::memcpy(out, p, size_t(C) * 4);
    return;
  }
  const uint16_t* halves = reinterpret_cast<const uint16_t*>(p);
  int64_t i = 0;
  for (; i + W <= C; i += W) V::store(out + i, table.dtype == Dtype::bf16 ? V::load_bf16(halves + i) : V::load_f16(halves + i));
  if (i < C) read_f32(table, row * C + i, C - i, out + i);
}

constexpr int kEmbedAhead = 4;

static void embed_rows(const EmbedArgs& a) {
  const int64_t C = a.y.cols;
  alignas(64) float position[64];
  for (int64_t t = 0; t < a.y.rows; ++t) {
    float* y = a.y.row(t);
    // Rows lie anywhere in a large table: ask for one some tokens ahead.
    if (t + kEmbedAhead < a.y.rows) {
      const size_t bytes = size_t(C) * dtype_size(a.table->dtype);
      const char* ahead = static_cast<const char*>(a.table->data) + size_t(a.ids[t + kEmbedAhead]) * bytes;
      for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(ahead + i);
    }
    read_row(*a.table, a.ids[t], y);
    if (a.scale != 1) along(C, [&](int64_t c, int n) { store_some(y + c, V::mul(load_some(y + c, n), V::set(a.scale)), n); });
    if (a.type_row) along(C, [&](int64_t c, int n) { store_some(y + c, V::add(load_some(y + c, n), load_some(a.type_row + c, n)), n); });
    if (!a.position_table) continue;
    const int64_t row = int64_t(a.positions[t]) * C;
    for (int64_t first = 0; first < C; first += 64) {
      const int64_t count = std::min<int64_t>(64, C - first);
      read_f32(*a.position_table, row + first, count, position);
      along(count, [&](int64_t c, int n) { store_some(y + first + c, V::add(load_some(y + first + c, n), load_some(position + c, n)), n); });
    }
  }
}

static void pool_sequence(const PoolArgs& a, int b) {
  const int64_t begin = a.offsets[b], end = a.offsets[b + 1], count = end - begin;
  const bool one_row = a.mode == Pooling::cls || a.mode == Pooling::last;
  const float* row = a.x.row(a.mode == Pooling::cls ? begin : end - 1);
  float weight = 1;
  if (a.mode == Pooling::mean) weight = 1 / float(count);
  if (a.mode == Pooling::mean_sqrt_len) weight = 1 / std::sqrt(float(count));
  if (a.mode == Pooling::weighted_mean) weight = 2 / (float(count) * float(count + 1));
  along(a.x.cols, [&](int64_t c, int n) {
    F v = one_row ? load_some(row + c, n) : load_some(a.x.row(begin) + c, n);
    if (!one_row)
      for (int64_t t = begin + 1; t < end; ++t) {
        F x = load_some(a.x.row(t) + c, n);
        if (a.mode == Pooling::max) v = V::max(v, x);
        else if (a.mode == Pooling::weighted_mean) v = V::fma(x, V::set(float(t - begin + 1)), v);
        else v = V::add(v, x);
      }
    store_some(a.y.row(b) + c, V::mul(v, V::set(weight)), n);
  });
}

static void normalize_rows(const NormalizeArgs& a) {
  for (int64_t b = 0; b < a.x.rows; ++b) {
    float* x = a.x.row(b);
    F squares = V::zero();
    along(a.x.cols, [&](int64_t c, int n) {
      F v = load_some(x + c, n);
      squares = V::fma(v, v, squares);
    });
    const float length = std::sqrt(V::sum(squares));
    const F factor = V::set(1 / (length < 1e-12f ? 1e-12f : length));
    along(a.x.cols, [&](int64_t c, int n) { store_some(x + c, V::mul(load_some(x + c, n), factor), n); });
  }
}

}  // namespace conan::cpu::CONAN_ISA
