#if defined(__aarch64__)
#define CONAN_ISA neon
#define CONAN_TILE_ROWS kNeonTileRows

#include "cpu/simd_neon.h"
#include "cpu/kernels.inl"

constinit const conan::cpu::Kernels conan::cpu::kernels_neon = conan::cpu::neon::make_kernels("neon");
#endif
