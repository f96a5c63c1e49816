#define CONAN_ISA avx2
#define CONAN_TILE_ROWS 6

#include "cpu/simd_avx2.h"
#include "cpu/kernels.inl"

constinit const conan::cpu::Kernels conan::cpu::kernels_avx2 = conan::cpu::avx2::make_kernels("avx2");
