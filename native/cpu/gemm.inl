// Matrix multiplication tiles: up to kRows rows of activations by one panel of NR = 2 W output columns, all sums in
// registers. Weights come packed, activations as they lie in memory (broadcast loads), so nothing is transposed.
namespace conan::cpu::CONAN_ISA {

static inline F broadcast(const uint32_t* word) { return V::set(*reinterpret_cast<const float*>(word)); }

struct F32Panel {  // the weights of one k
  static constexpr int kBytes = NR * 4;
  static void load(const char* b, F& b0, F& b1) {
    b0 = V::load(reinterpret_cast<const float*>(b));
    b1 = V::load(reinterpret_cast<const float*>(b) + W);
  }
};
struct Bf16Panel {
  static constexpr int kBytes = NR * 2;
  static void load(const char* b, F& b0, F& b1) { V::load_bf16_pair(reinterpret_cast<const uint16_t*>(b), b0, b1); }
};
struct F16Panel {
  static constexpr int kBytes = NR * 2;
  static void load(const char* b, F& b0, F& b1) {
    b0 = V::load_f16(reinterpret_cast<const uint16_t*>(b));
    b1 = V::load_f16(reinterpret_cast<const uint16_t*>(b) + W);
  }
};

static inline void prefetch(const char* b, int bytes) {
  for (int i = 0; i < bytes; i += 64) __builtin_prefetch(b + int64_t(kPrefetchSteps) * bytes + i);
}

template <int kRows, class Panel, bool kAcross>
static void tile_float(const uint32_t* a, int64_t stride, const void* panel, int64_t steps, void* tile) {
  F sum[kRows][2];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) sum[i][0] = sum[i][1] = V::zero();
  Rows<kRows, kAcross> rows(a, stride);
  const char* b = static_cast<const char*>(panel);
  for (int64_t k = 0; k < steps; ++k, b += Panel::kBytes, rows.step()) {
    F b0, b1;
    Panel::load(b, b0, b1);
    prefetch(b, Panel::kBytes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      F x = broadcast(rows.at(i));
      sum[i][0] = V::fma(x, b0, sum[i][0]);
      sum[i][1] = V::fma(x, b1, sum[i][1]);
    }
  }
  float* out = static_cast<float*>(tile);
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    V::store(out + i * NR, sum[i][0]);
    V::store(out + i * NR + W, sum[i][1]);
  }
}

/// As tile_float in f32 for one register of columns, where there are no more: short sequences in attention, weights of few rows. `kStride`: from
/// one k of the panel to the next, and from one row of the tile.
template <int kRows, bool kAcross, int kStride>
static void tile_narrow(const uint32_t* a, int64_t stride, const void* panel, int64_t steps, void* tile) {
  F sum[kRows];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) sum[i] = V::zero();
  Rows<kRows, kAcross> rows(a, stride);
  const float* b = static_cast<const float*>(panel);
  for (int64_t k = 0; k < steps; ++k, b += kStride, rows.step()) {
    F b0 = V::load(b);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) sum[i] = V::fma(broadcast(rows.at(i)), b0, sum[i]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) V::store(static_cast<float*>(tile) + i * kStride, sum[i]);
}

template <int kRows>
static void tile_i8_pairs(const uint32_t* a, int64_t stride, const void* panel, int64_t steps, void* tile) {
  V::I sum[kRows][2];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) sum[i][0] = sum[i][1] = V::zero_i();
  Rows<kRows, false> rows(a, stride);
  const int8_t* b = static_cast<const int8_t*>(panel);
  for (int64_t k = 0; k < steps; ++k, b += 2 * NR, rows.step()) {
    V::I b0 = V::load_i8_pairs(b), b1 = V::load_i8_pairs(b + NR);
    prefetch(reinterpret_cast<const char*>(b), 2 * NR);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      V::I x = V::set_i(*rows.at(i));
      sum[i][0] = V::madd(sum[i][0], x, b0);
      sum[i][1] = V::madd(sum[i][1], x, b1);
    }
  }
  int32_t* out = static_cast<int32_t*>(tile);
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    V::store_i(out + i * NR, sum[i][0]);
    V::store_i(out + i * NR + W, sum[i][1]);
  }
}

static inline float largest_magnitude(const float* x, int64_t n) {
  F most = V::zero();
  int64_t i = 0;
  for (; i + W <= n; i += W) most = V::max(most, V::abs(V::load(x + i)));
  if (i < n) most = V::max(most, V::abs(V::load_n(x + i, int(n - i))));
  return V::largest(most);
}

/// Symmetric quantisation of one row to int16 holding -127 .. 127, padded with zeros to whole words.
[[maybe_unused]] static void convert_i16(const float* x, int64_t k, uint32_t* words, float* scale) {
  const float most = largest_magnitude(x, k);
  *scale = most / 127;
  const F inverse = V::set(most > 0 ? 127 / most : 0);
  int16_t* out = reinterpret_cast<int16_t*>(words);
  int64_t i = 0;
  for (; i + W <= k; i += W) V::store_i16(out + i, V::mul(V::load(x + i), inverse));
  if (i < k) {
    int16_t rest[W];
    V::store_i16(rest, V::mul(V::load_n(x + i, int(k - i)), inverse));
    std::memcpy(out + i, rest, size_t((k - i + 1) / 2 * 2) * 2);
  }
}

static inline void pack_rows(const float* x, int64_t stride, int64_t rows, int columns, void* panel) {
  float* out = static_cast<float*>(panel);
  const int low = std::min(columns, W), high = columns - low;
  for (int64_t t = 0; t < rows; ++t, x += stride, out += NR) {
    V::store(out, load_some(x, low));
    V::store(out + W, high > 0 ? load_some(x + W, high) : V::zero());
  }
}

static inline void turn_tile(const void* in, void* out) {
  transpose({static_cast<float*>(const_cast<void*>(in)), NR, NR, NR}, {static_cast<float*>(out), NR, NR, NR});
}

// Tables of tiles by number of rows, 1 .. CONAN_TILE_ROWS.
template <class Panel, int... i>
static constexpr GemmKernel float_kernel(const char* name, Layout layout, std::integer_sequence<int, i...>) {
  GemmKernel kernel{name, layout};
  if (layout == Layout::f32) {
    kernel.turn = turn_tile, kernel.pack_rows = pack_rows;
    ((kernel.narrow_tile[i + 1] = tile_narrow<i + 1, false, NR>), ...);
  }
  ((kernel.tile[i + 1] = tile_float<i + 1, Panel, false>), ...);
  return kernel;
}

template <int... i>
static constexpr GemmKernel i8_pairs_kernel(const char* name, std::integer_sequence<int, i...>) {
  GemmKernel kernel{name, Layout::i8_pairs};
  ((kernel.tile[i + 1] = tile_i8_pairs<i + 1>), ...);
  kernel.convert = convert_i16;
  return kernel;
}

using TileRows = std::make_integer_sequence<int, CONAN_TILE_ROWS>;

// ---- what becomes of a finished tile

static inline void store_bf16(uint16_t* p, F x) {
#if defined(__AVX512BF16__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), __m256i(_mm512_cvtneps_pbh(x)));
#else
  float values[W];
  V::store(values, x);
  for (int i = 0; i < W; ++i) p[i] = f32_to_bf16(values[i]);
#endif
}

/// y[i][n ..] = value(i) (+ residual) for one register of columns, of which `valid` exist.
template <class Value>
static inline void finish_columns(const Finish& f, int rows, int64_t n, int valid, const Value& value) {
  if (f.narrow_y) {
    for (int i = 0; i < rows; ++i) store_bf16(f.narrow_y + i * f.narrow_stride + n, value(i));
    return;
  }
  float* y = f.y + n;
  const float* residual = f.residual ? f.residual + n : nullptr;
  const int64_t y_stride = f.y_stride, residual_stride = f.residual_stride;
  if (valid < W) {
    for (int i = 0; i < rows; ++i) {
      const F x = residual ? V::add(value(i), V::load_n(residual + i * residual_stride, valid)) : value(i);
      V::store_n(y + i * y_stride, x, valid);
    }
  } else if (residual) {
    for (int i = 0; i < rows; ++i) V::store(y + i * y_stride, V::add(value(i), V::load(residual + i * residual_stride)));
  } else {
    for (int i = 0; i < rows; ++i) V::store(y + i * y_stride, value(i));
  }
}

/// Sums of f32 products, bias added.
struct FloatSums {
  const float* tile;
  F bias;
  FloatSums(const void* t, int vector, const Finish&, int64_t, F b) : tile(static_cast<const float*>(t) + vector * W), bias(b) {}
  F operator()(int row) const { return V::add(V::load(tile + row * NR), bias); }
};

/// Sums of int8 products: what the shift of the activations added comes off, scales and bias are applied.
struct IntegerSums {
  const int32_t* tile;
  V::I compensation;
  F scale, bias;
  const float* row_scale;
  IntegerSums(const void* t, int vector, const Finish& f, int64_t panel, F b)
      : tile(static_cast<const int32_t*>(t) + vector * W),
        compensation(f.compensation ? V::load_i(f.compensation + panel * NR + vector * W) : V::zero_i()),
        scale(V::load(f.column_scale + panel * NR + vector * W)),
        bias(b),
        row_scale(f.row_scale) {}
  F operator()(int row) const {
    return V::fma(V::mul(V::to_float(V::sub_i(V::load_i(tile + row * NR), compensation)), scale), V::set(row_scale[row]), bias);
  }
};

template <class Sums>
static void finish_tile(const void* tile, int rows, int64_t panel, const Finish& f) {
  with_activation(f.activation, f.coarse, [&](const auto& activation) {
    auto bias = [&](int64_t n, int valid) { return f.bias ? load_some(f.bias + n, valid) : V::zero(); };
    if (f.gated) {
      const int64_t n = panel * W;
      const int valid = int(std::min<int64_t>(W, f.outputs - n));
      const Sums gate(tile, 0, f, panel, bias(n, valid)), value(tile, 1, f, panel, bias(f.outputs + n, valid));
      finish_columns(f, rows, n, valid, [&](int i) { return V::mul(activation(gate(i)), value(i)); });
      return;
    }
    for (int j = 0; j < 2; ++j) {
      const int64_t n = panel * NR + j * W;
      const int valid = int(std::min<int64_t>(W, f.outputs - n));
      if (valid <= 0) break;
      const Sums sums(tile, j, f, panel, bias(n, valid));
      finish_columns(f, rows, n, valid, [&](int i) { return activation(sums(i)); });
    }
  });
}

[[maybe_unused]] static void finish(const void* tile, int rows, int64_t panel, const Finish& f) {
  if (f.column_scale) finish_tile<IntegerSums>(tile, rows, panel, f);
  else finish_tile<FloatSums>(tile, rows, panel, f);
}

}  // namespace conan::cpu::CONAN_ISA
