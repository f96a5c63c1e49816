#include "merge/kernels.h"

#include <cstdlib>
#include <string_view>

#include "base/cpu_features.h"

namespace conan::merge {

const Kernels& kernels() {
  static const Kernels& chosen = []() -> const Kernels& {
#if defined(__x86_64__)
    const char* wanted = std::getenv("CONAN_CPU_ISA");
    const std::string_view isa = wanted ? wanted : "";
    if (isa == "portable" || isa == "reference") return kernels_portable;
    if (has_avx512() && isa != "avx2") return kernels_avx512;
    if (has_avx2()) return kernels_avx2;
#endif
    return kernels_portable;
  }();
  return chosen;
}

}  // namespace conan::merge
