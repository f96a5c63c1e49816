// Which instruction sets this CPU and its system have. Asked of the CPU itself: what stands behind __builtin_cpu_supports is missing from some
// compilers' libraries, and then says no to everything.
#pragma once
#if defined(__x86_64__)
#include <cpuid.h>

namespace conan {

struct CpuId {
  unsigned a = 0, b = 0, c = 0, d = 0;
  explicit CpuId(unsigned leaf, unsigned part = 0) {
    if (!__get_cpuid_count(leaf, part, &a, &b, &c, &d)) a = b = c = d = 0;
  }
};

/// Whether the system keeps these registers apart for every thread (Intel's manual, volume 1, 13.3).
inline bool saves(unsigned registers) {
  if (!(CpuId(1).c & bit_OSXSAVE)) return false;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
#if defined(__APPLE__)
  low |= 0xe0;  // those of AVX-512 only from when a thread first uses them
#endif
  return (low & registers) == registers;
}

/// With FMA and F16C, as kernels_avx2.cpp is compiled.
inline bool has_avx2() { return saves(0x06) && (CpuId(7).b & bit_AVX2) && (CpuId(1).c & bit_FMA) && (CpuId(1).c & bit_F16C); }

/// With BW, DQ and VL, as kernels_avx512.cpp is compiled.
inline bool has_avx512() {
  constexpr unsigned all = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
  return has_avx2() && saves(0xe6) && (CpuId(7).b & all) == all;
}

inline bool has_avx512_vnni() { return has_avx512() && (CpuId(7).c & bit_AVX512VNNI); }
inline bool has_avx512_bf16() { return has_avx512() && CpuId(7).a >= 1 && (CpuId(7, 1).a & bit_AVX512BF16); }

}  // namespace conan
#elif defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>
#endif

namespace conan {

/// sdot, which came with Armv8.2.
inline bool has_dotprod() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) & (1u << 20);  // HWCAP_ASIMDDP
#elif defined(__APPLE__)
  return true;  // every Mac has it
#else
  return false;
#endif
}

}  // namespace conan
#endif
