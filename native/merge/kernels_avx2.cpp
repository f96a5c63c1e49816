#define CONAN_ISA avx2
#include "merge/kernels.inl"

constinit const conan::merge::Kernels conan::merge::kernels_avx2 = conan::merge::avx2::make_kernels("avx2");
