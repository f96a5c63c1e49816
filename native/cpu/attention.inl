// Attention of one panel of queries over one sequence, never holding more than kBlock x NR scores (online softmax,
// Dao et al. 2022). Scores are kept transposed, keys down and queries across: the softmax then runs down registers
// without a horizontal step, the keys are the tile's rows as they lie in memory, and so are the values.
namespace conan::cpu::CONAN_ISA {

constexpr int kBlock = 128;        // keys at a time: 128 x 32 scores stay in L1
constexpr float kMasked = -1e30f;  // finite, so that a fully masked block makes no NaN

template <bool kAcross, bool kWide, int... i>
static constexpr auto attention_tiles(std::integer_sequence<int, i...>) {
  std::array<TileKernel, CONAN_TILE_ROWS + 1> tiles{};
  if constexpr (kWide) ((tiles[i + 1] = tile_float<i + 1, F32Panel, kAcross>), ...);
  else ((tiles[i + 1] = tile_narrow<i + 1, kAcross>), ...);
  return tiles;
}

/// out[count][N] = A[count][steps] * panel, in tiles of nearly equal height.
template <bool kAcross, bool kWide>
static inline void multiply(const float* a, int64_t stride, const float* panel, int64_t steps, float* out, int64_t count) {
  static constexpr auto tiles = attention_tiles<kAcross, kWide>(TileRows{});
  constexpr int N = kWide ? NR : W;
  const int64_t parts = (count + CONAN_TILE_ROWS - 1) / CONAN_TILE_ROWS;
  for (int64_t p = 0, row = 0; p < parts; ++p) {
    const int64_t next = count * (p + 1) / parts;
    const float* first = kAcross ? a + row : a + row * stride;
    tiles[size_t(next - row)](reinterpret_cast<const uint32_t*>(first), stride, panel, steps, out + row * N);
    row = next;
  }
}

template <bool kWide>
static void attention(const AttentionPanel& a) {
  constexpr int N = kWide ? NR : W, vectors = N / W;
  const int D = a.head_dim;
  float* qt = a.scratch;      // [D][N]
  float* o = qt + D * NR;     // [D][N], the output so far
  float* fresh = o + D * NR;  // [D][N], this block's share
  float* s = fresh + D * NR;  // [kBlock][N]

  // Queries as a panel, scaled so that the softmax may use powers of two.
  const float scale = a.scale * 1.44269504088896341f;
  for (int j = 0; j < vectors; ++j) {
    const int count = std::min(W, a.queries - j * W);
    for (int d = 0; d < D; d += W) {
      F block[W];
      const int width = std::min(W, D - d);
      for (int i = 0; i < W; ++i) block[i] = i < count ? V::mul(load_some(a.q + (j * W + i) * a.q_stride + d, width), V::set(scale)) : V::zero();
      V::transpose(block);
      for (int i = 0; i < width; ++i) V::store(qt + (d + i) * N + j * W, block[i]);
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
    multiply<false, kWide>(a.k + k0 * a.k_stride, a.k_stride, qt, D, s, keys);
    if (a.bias) {
      for (int i = 0; i < keys; ++i)
        for (int j = 0; j < vectors; ++j) {
          float* at = s + i * N + j * W;
          F bias = V::load(a.bias + a.position + j * W - (k0 + i));
          V::store(at, V::fma(bias, V::set(1.44269504088896341f), V::load(at)));
        }
    }
    for (int i = 0; i < keys; ++i) {            // only rows that some query may not see
      const int64_t key = k0 + i - a.position;  // relative, as `position` is
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
    F before[vectors];
    for (int j = 0; j < vectors; ++j) {
      before[j] = most[j];
      for (int i = 0; i < keys; ++i) most[j] = V::max(V::load(s + i * N + j * W), most[j]);
    }
    F factor[vectors];
    for (int j = 0; j < vectors; ++j) {
      factor[j] = exp2(V::sub(before[j], most[j]));
      total[j] = V::mul(total[j], factor[j]);
    }
    for (int i = 0; i < keys; ++i)
      for (int j = 0; j < vectors; ++j) {
        float* at = s + i * N + j * W;
        F p = exp2(V::sub(V::load(at), most[j]));
        total[j] = V::add(total[j], p);
        V::store(at, p);
      }
    const bool first = k0 == begin;
    multiply<true, kWide>(a.v + k0 * a.v_stride, a.v_stride, s, keys, first ? o : fresh, D);
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
      for (int i = 0; i < W; ++i) block[i] = i < width ? V::mul(V::load(o + (d + i) * N + j * W), inverse) : V::zero();
      V::transpose(block);
      for (int i = 0; i < count; ++i) store_some(a.y + (j * W + i) * a.y_stride + d, block[i], width);
    }
  }
}

static void attention_panel(const AttentionPanel& a) {
  if (a.queries <= W) attention<false>(a);
  else attention<true>(a);
}

}  // namespace conan::cpu::CONAN_ISA
