// The tile of the dot-product instructions: as tile_float in gemm.inl, with a word of several k per lane.
namespace conan::cpu::CONAN_ISA {

template <int kRows, class Dot, bool kAcross = false, int kVectors = 2>
static void tile_dot(const uint32_t* a, int64_t stride, const void* panel, int64_t steps, void* tile) {
  typename Dot::Sum sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kVectors; ++j) sum[i][j] = Dot::zero();
  Rows<kRows, kAcross> rows(a, stride);
  const char* b = static_cast<const char*>(panel);
  for (int64_t k = 0; k < steps; ++k, b += 64 * kVectors, rows.step()) {
    __m512i w[kVectors];
    for (int j = 0; j < kVectors; ++j) {
      w[j] = _mm512_loadu_si512(b + 64 * j);
      if (!kAcross) __builtin_prefetch(b + kPrefetchSteps * 64 * kVectors + 64 * j);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const __m512i x = _mm512_set1_epi32(int(*rows.at(i)));
      for (int j = 0; j < kVectors; ++j) sum[i][j] = Dot::dot(sum[i][j], x, w[j]);
    }
  }
  char* out = static_cast<char*>(tile);
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kVectors; ++j) Dot::store(out + (i * kVectors + j) * 64, sum[i][j]);
}

template <class Dot, int... i>
static constexpr GemmKernel dot_kernel(const char* name, Layout layout, void (*convert)(const float*, int64_t, uint32_t*, float*),
                                       std::integer_sequence<int, i...>) {
  GemmKernel kernel{name, layout};
  ((kernel.tile[i + 1] = tile_dot<i + 1, Dot>), ...);
  kernel.convert = convert;
  return kernel;
}

}  // namespace conan::cpu::CONAN_ISA
