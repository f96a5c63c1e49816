// What the tiles of all formats share: how rows of A are addressed, how far ahead weights are fetched.
namespace conan::cpu::CONAN_ISA {

constexpr int W = V::W, NR = 2 * V::W;

/// Rows of A by groups of three from one pointer: x86 addresses p, p + s and p + 2 s without further registers.
/// With kAcross, element (row, k) lies at a[k * stride + row] instead of a[row * stride + k].
template <int kRows, bool kAcross>
struct Rows {
  static constexpr int kGroups = (kRows + 2) / 3;
  const uint32_t* p[kAcross ? 1 : kGroups];
  int64_t stride;
  Rows(const uint32_t* a, int64_t s) : stride(s) {
    if constexpr (kAcross) {
      p[0] = a;
    } else {
      for (int g = 0; g < kGroups; ++g) p[g] = a + 3 * g * s;
    }
  }
  const uint32_t* at(int row) const {
    if constexpr (kAcross) return p[0] + row;
    else return p[row / 3] + (row % 3) * stride;
  }
  void step() {
    if constexpr (kAcross) {
      p[0] += stride;
    } else {
      for (int g = 0; g < kGroups; ++g) ++p[g];
    }
  }
};

// Weights come from L2, L3 or memory; this many steps ahead of their use they are asked for.
constexpr int kPrefetchSteps = 24;

static inline F load_some(const float* p, int n) { return n >= W ? V::load(p) : V::load_n(p, n); }
static inline void store_some(float* p, F x, int n) {
  if (n >= W) V::store(p, x);
  else V::store_n(p, x, n);
}

/// y[c][t] = x[t][c]
static inline void transpose(const Matrix& x, const Matrix& y) {
  for (int64_t top = 0; top < x.rows; top += W)
    for (int64_t c = 0; c < x.cols; c += W) {
      const int rows = int(std::min<int64_t>(W, x.rows - top)), cols = int(std::min<int64_t>(W, x.cols - c));
      F block[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) block[i] = i < rows ? load_some(x.row(top + i) + c, cols) : V::zero();
      V::transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i)
        if (i < cols) store_some(y.row(c + i) + top, block[i], rows);
    }
}

}  // namespace conan::cpu::CONAN_ISA
