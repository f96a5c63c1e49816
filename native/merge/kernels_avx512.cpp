#define CONAN_ISA avx512
#include "merge/kernels.inl"

constinit const conan::merge::Kernels conan::merge::kernels_avx512 = conan::merge::avx512::make_kernels("avx512");
