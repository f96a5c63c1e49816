#include "merge/kernels.h"

#include <cstdlib>
#include <string_view>

namespace conan::merge {

const Kernels& kernels() {
  static const Kernels& chosen = []() -> const Kernels& {
#if defined(__x86_64__)
    const char* wanted = std::getenv("CONAN_CPU_ISA");
    const std::string_view isa = wanted ? wanted : "";
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    if (isa == "portable" || isa == "reference") return kernels_portable;
    if (avx512 && isa != "avx2") return kernels_avx512;
    if (avx2) return kernels_avx2;
#endif
    return kernels_portable;
  }();
  return chosen;
}

}  // namespace conan::merge
