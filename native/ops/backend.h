// Which backend runs a model, and what this machine's CPU does fast.
#pragma once
#include <string>
#include <vector>

#include "ops/ops.h"

namespace conan {

/// The table for "cpu" (the best instruction set this CPU has, or the one named by CONAN_CPU_ISA).
const OperationTable& cpu_backend();

/// Every CPU table this machine can run, plain loops ("reference") first. For tests and `inspect --devices`.
std::vector<const OperationTable*> cpu_backends();

struct CpuReport {
  std::string isa;          // name of the table in use
  std::string bf16_kernel;  // "vdpbf16ps" or "widened to float32"
  std::string int8_kernel;
  double f32_gflops = 0, bf16_dot_gflops = 0;  // one thread, measured at first use; 0: not measured
  int threads = 0;
};
CpuReport cpu_report();

}  // namespace conan
