#define CONAN_ISA avx512
#define CONAN_TILE_ROWS 14
#define CONAN_LOOKUP16  // a permute picks from sixteen floats
#include "cpu/simd_avx512.h"
#include "cpu/kernels.inl"

constinit const conan::cpu::Kernels conan::cpu::kernels_avx512 = conan::cpu::avx512::make_kernels("avx512");
