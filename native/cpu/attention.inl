// Attention of one panel of queries over one sequence, never holding more than kBlock x NR scores (online softmax,
// Dao et al. 2022). Scores are kept transposed, keys down and queries across: the softmax then runs down registers
// without a horizontal step, keys and values are the tiles' rows as they lie in memory, and queries and probabilities
// are the panels. Math says how products are made: PlainMath below, or bf16 pairs (bf16_avx512bf16.cpp).
namespace conan::cpu::CONAN_ISA {

constexpr int kBlock = kAttentionBlock;
constexpr float kMasked = -1e30f;  // finite, so that a fully masked block makes no NaN

/// f32 products: rows are used where they lie.
struct PlainMath {
  static constexpr int kGroup = 1;  // elements per word of a panel
  using Panel = float;

  template <int kRows, bool kAcross, bool kWide>
  static constexpr TileKernel tile() {
    if constexpr (kWide) return tile_float<kRows, F32Panel, kAcross>;
    else return tile_narrow<kRows, kAcross, W>;
  }
  static void store(Panel* out, F row, F) { V::store(out, row); }
  static F exp2(F x) { return CONAN_ISA::exp2(x); }
  static const uint32_t* keys(const AttentionPanel& a, int64_t first, int64_t, uint32_t*, bool, int64_t& stride) {
    stride = a.k_stride;
    return reinterpret_cast<const uint32_t*>(a.k + first * a.k_stride);
  }
  static const uint32_t* values(const AttentionPanel& a, int64_t first, int64_t, uint32_t*, bool, int64_t& stride) {
    stride = a.v_stride;
    return reinterpret_cast<const uint32_t*>(a.v + first * a.v_stride);
  }
};

template <class Math, bool kAcross, bool kWide, int... i>
static constexpr auto attention_tiles(std::integer_sequence<int, i...>) {
  std::array<TileKernel, CONAN_TILE_ROWS + 1> tiles{};
  ((tiles[i + 1] = Math::template tile<i + 1, kAcross, kWide>()), ...);
  return tiles;
}

/// out[count][N] = A[count][steps] * panel, in tiles of nearly equal height.
template <class Math, bool kAcross, bool kWide>
static inline void multiply(const uint32_t* a, int64_t stride, const void* panel, int64_t steps, float* out, int64_t count) {
  static constexpr auto tiles = attention_tiles<Math, kAcross, kWide>(std::make_integer_sequence<int, CONAN_TILE_ROWS>{});
  constexpr int N = kWide ? NR : W;
  const int64_t parts = (count + CONAN_TILE_ROWS - 1) / CONAN_TILE_ROWS;
  for (int64_t p = 0, row = 0; p < parts; ++p) {
    const int64_t next = count * (p + 1) / parts;
    tiles[size_t(next - row)](kAcross ? a + row : a + row * stride, stride, panel, steps, out + row * N);
    row = next;
  }
}

template <class Math, bool kWide>
static void attention(const AttentionPanel& a) {
  constexpr int N = kWide ? NR : W, vectors = N / W, G = Math::kGroup;
  const int D = a.head_dim;
  float* o = a.scratch;                                                // [D][N], the output so far
  float* fresh = o + D * NR;                                           // [D][N], this block's share
  float* s = fresh + D * NR;                                           // [kBlock][N] scores
  auto* q = reinterpret_cast<typename Math::Panel*>(s + kBlock * NR);  // [D / G][N] words
  auto* p = reinterpret_cast<typename Math::Panel*>(q + D * NR);       // [kBlock / G][N] words
  uint32_t* key_words = reinterpret_cast<uint32_t*>(p + kBlock * NR);  // [kBlock][D] where Math needs its own form
  uint32_t* value_words = key_words + kBlock * D;
  // Without a window every panel sees the same keys; in one block their form may be kept from panel to panel.
  const bool converted = a.same_keys && a.left < 0 && a.right < 0 && a.keys <= kBlock;

  // Queries as a panel, scaled so that the softmax may use powers of two.
  const float scale = a.scale * 1.44269504088896341f;
  for (int j = 0; j < vectors; ++j) {
    const int count = std::min(W, a.queries - j * W);
    for (int d = 0; d < D; d += W) {
      F block[W];
      const int width = std::min(W, D - d);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) block[i] = i < count ? V::mul(load_some(a.q + (j * W + i) * a.q_stride + d, width), V::set(scale)) : V::zero();
      V::transpose(block);
      for (int i = 0; i < width; i += G) Math::store(q + (d + i) / G * N + j * W, block[i], i + 1 < width ? block[i + 1] : V::zero());
    }
  }

  const int64_t last = a.position + a.queries - 1;
  const int64_t begin = a.left < 0 ? 0 : std::max<int64_t>(0, a.position - a.left);
  const int64_t end = a.right < 0 ? a.keys : std::min<int64_t>(a.keys, last + a.right + 1);
  F most[vectors], total[vectors], position[vectors];
  for (int j = 0; j < vectors; ++j) {
    most[j] = V::set(kMasked);
    total[j] = V::zero();
    position[j] = V::add(V::iota(), V::set(float(j * W)));  // relative to a.position: exact in f32
  }

  for (int64_t k0 = begin; k0 < end; k0 += kBlock) {
    const int keys = int(std::min<int64_t>(kBlock, end - k0));
    int64_t stride;
    const uint32_t* key_rows = Math::keys(a, k0, keys, key_words, converted, stride);
    multiply<Math, false, kWide>(key_rows, stride, q, (D + G - 1) / G, s, keys);
    if (a.bias) {
      for (int i = 0; i < keys; ++i)
        for (int j = 0; j < vectors; ++j) {
          float* at = s + i * N + j * W;
          F bias = V::load(a.bias + a.position + j * W - (k0 + i));
          V::store(at, V::fma(bias, V::set(1.44269504088896341f), V::load(at)));
        }
    }
    const bool windowed = a.left >= 0 || a.right >= 0;
    for (int i = 0; windowed && i < keys; ++i) {  // only rows that some query may not see
      const int64_t key = k0 + i - a.position;    // relative, as `position` is
      const bool whole = (a.left < 0 || a.queries - 1 - key <= a.left) && (a.right < 0 || key <= a.right);
      if (whole) continue;
      for (int j = 0; j < vectors; ++j) {
        float* at = s + i * N + j * W;
        F x = V::load(at);
        if (a.left >= 0) x = V::where_ge(V::set(float(key + a.left)), position[j], x, V::set(kMasked));
        if (a.right >= 0) x = V::where_ge(position[j], V::set(float(key - a.right)), x, V::set(kMasked));
        V::store(at, x);
      }
    }
    F factor[vectors];
    for (int j = 0; j < vectors; ++j) {
      const F before = most[j];
      F m0 = before, m1 = before;  // two chains
      int i = 0;
      for (; i + 2 <= keys; i += 2) {
        m0 = V::max(V::load(s + i * N + j * W), m0);
        m1 = V::max(V::load(s + (i + 1) * N + j * W), m1);
      }
      if (i < keys) m0 = V::max(V::load(s + i * N + j * W), m0);
      most[j] = V::max(m0, m1);
      factor[j] = Math::exp2(V::sub(before, most[j]));
      total[j] = V::mul(total[j], factor[j]);
    }
    for (int i = 0; i < keys; i += G)
      for (int j = 0; j < vectors; ++j) {
        F p0 = Math::exp2(V::sub(V::load(s + i * N + j * W), most[j])), p1 = V::zero();
        total[j] = V::add(total[j], p0);
        if (G == 2 && i + 1 < keys) {
          p1 = Math::exp2(V::sub(V::load(s + (i + 1) * N + j * W), most[j]));
          total[j] = V::add(total[j], p1);
        }
        Math::store(p + i / G * N + j * W, p0, p1);
      }
    const bool first = k0 == begin;
    const uint32_t* value_rows = Math::values(a, k0, keys, value_words, converted, stride);
    multiply<Math, true, kWide>(value_rows, stride, p, (keys + G - 1) / G, first ? o : fresh, D);
    if (!first)
      for (int d = 0; d < D; ++d)
        for (int j = 0; j < vectors; ++j) {
          const int at = d * N + j * W;
          V::store(o + at, V::fma(V::load(o + at), factor[j], V::load(fresh + at)));
        }
  }

  for (int j = 0; j < vectors; ++j) {
    const int count = std::min(W, a.queries - j * W);
    const F inverse = V::div(V::set(1.f), total[j]);
    for (int d = 0; d < D; d += W) {
      F block[W];
      const int width = std::min(W, D - d);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) block[i] = i < width ? V::mul(V::load(o + (d + i) * N + j * W), inverse) : V::zero();
      V::transpose(block);
      for (int i = 0; i < count; ++i) store_some(a.y + (j * W + i) * a.y_stride + d, block[i], width);
    }
  }
}

template <class Math>
static void attention_panel(const AttentionPanel& a) {
  if (a.queries <= W) attention<Math, false>(a);
  else attention<Math, true>(a);
}

}  // namespace conan::cpu::CONAN_ISA
