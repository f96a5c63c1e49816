// The tile of the dot-product instructions: as tile_float in gemm.inl, with a word of several k per lane.
namespace conan::cpu::CONAN_ISA {

template <int kRows, class Dot>
static void tile_dot(const uint32_t* a, int64_t stride, const void* panel, int64_t steps, void* tile) {
  typename Dot::Sum sum[kRows][2];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) sum[i][0] = sum[i][1] = Dot::zero();
  const uint32_t* p[(kRows + 2) / 3];
  for (int g = 0; g < (kRows + 2) / 3; ++g) p[g] = a + 3 * g * stride;
  const char* b = static_cast<const char*>(panel);
  for (int64_t k = 0; k < steps; ++k, b += 128) {
    const __m512i b0 = _mm512_load_si512(b), b1 = _mm512_load_si512(b + 64);
    __builtin_prefetch(b + 24 * 128);
    __builtin_prefetch(b + 24 * 128 + 64);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const __m512i x = _mm512_set1_epi32(int(p[i / 3][(i % 3) * stride + k]));
      sum[i][0] = Dot::dot(sum[i][0], x, b0);
      sum[i][1] = Dot::dot(sum[i][1], x, b1);
    }
  }
  char* out = static_cast<char*>(tile);
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    Dot::store(out + i * 128, sum[i][0]);
    Dot::store(out + i * 128 + 64, sum[i][1]);
  }
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
