#define CONAN_ISA portable
#define CONAN_TILE_ROWS 4

#include "cpu/simd_portable.h"
#include "cpu/kernels.inl"

constinit const conan::cpu::Kernels conan::cpu::kernels_portable = conan::cpu::portable::make_kernels("portable");
