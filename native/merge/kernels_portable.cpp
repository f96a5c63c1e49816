#define CONAN_ISA portable
#include "merge/kernels.inl"

constinit const conan::merge::Kernels conan::merge::kernels_portable = conan::merge::portable::make_kernels("portable");
