// Which instruction sets this CPU and its system have.
#pragma once
#if defined(__x86_64__)
#include <cpuid.h>

namespace conan {

/// With FMA and F16C, as kernels_avx2.cpp is compiled.
inline bool has_avx2() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);  // for which clang's builtin has no name
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
}

/// With BW, DQ and VL, as kernels_avx512.cpp is compiled.
inline bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}

}  // namespace conan
#endif
