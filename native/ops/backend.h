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

struct GpuReport {
  std::string device;  // "cuda:0"; empty: there is none, and `name` says why
  std::string name;
  size_t memory = 0;   // bytes
  int capability = 0;  // 90 for 9.0
};
/// Every GPU that can be used, or one entry that says why none can.
std::vector<GpuReport> gpu_reports();

/// The table for "cpu", "cuda" or "cuda:N"; Error DEVICE_UNAVAILABLE with the reason.
const OperationTable& backend(const std::string& device);

}  // namespace conan
