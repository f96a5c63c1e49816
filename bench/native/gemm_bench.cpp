// Matrix multiplication per format and shape, beside the rate of the multiply instructions in the same run.
// Usage: gemm_bench [threads] [ceiling: only the rates, as JSON]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../../test/native/check.h"
#include "base/cpu_features.h"
#include "base/thread_pool.h"
#include "ops/backend.h"

using namespace conan;

static double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

#if defined(__x86_64__)
// Fourteen independent sums, nothing from memory: what the instruction itself allows. Needs AVX-512.
#define CONAN_PEAK(instruction)                                                                                                                     \
  [](long loops) {                                                                                                                                  \
    asm volatile("1:\n .irp r,0,1,2,3,4,5,6,7,8,9,10,11,12,13\n " instruction " %%zmm14,%%zmm15,%%zmm\\r\n .endr\n dec %0\n jnz 1b\n"               \
                 : "+r"(loops)::"xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", \
                   "xmm14", "xmm15", "cc");                                                                                                         \
  }
#endif

/// Billions of multiplications and additions per second of an instruction on all threads; median of a few runs.
static double peak(void (*loop)(long), int flops, int threads) {
  std::vector<double> rates;
  constexpr long kLoops = 3'000'000;
  for (int attempt = 0; attempt < 5; ++attempt) {
    const double start = seconds();
    ThreadPool::instance().run(threads, [&](int) { loop(kLoops); });
    rates.push_back(double(threads) * kLoops * 14 * flops / (seconds() - start) / 1e9);
  }
  std::sort(rates.begin(), rates.end());
  return rates[2];
}

static void print_ceilings(int threads) {
  double f32 = 0, bf16 = 0, i8 = 0;
#if defined(__x86_64__)
  if (has_avx512()) f32 = peak(CONAN_PEAK("vfmadd231ps"), 32, threads);
  if (has_avx512_bf16()) bf16 = peak(CONAN_PEAK("vdpbf16ps"), 64, threads);
  if (has_avx512_vnni()) i8 = peak(CONAN_PEAK("vpdpbusd"), 128, threads);
#endif
  // Where bf16 products are slower than f32 ones, bf16 weights are widened and the f32 rate is the ceiling.
  std::printf("{\"float32\":%.1f,\"bfloat16\":%.1f,\"int8\":%.1f}\n", f32, std::max(f32, bf16), std::max(f32, i8));
}

int main(int count, char** arguments) {
  const int threads = count > 1 ? std::atoi(arguments[1]) : ThreadPool::default_threads();
  if (count > 2 && !std::strcmp(arguments[2], "ceiling")) return print_ceilings(threads), 0;
  const OperationTable& table = cpu_backend();
  const CpuReport report = cpu_report();
  std::printf("%s, %d threads; one thread in L1: float32 %.0f GFLOP/s, vdpbf16ps %.0f\n", table.name, threads, report.f32_gflops,
              report.bf16_dot_gflops);
  std::printf("ceilings on all threads: ");
  print_ceilings(threads);
  const int64_t shapes[][3] = {{1, 384, 1536},    {16, 384, 1536},   {128, 384, 384},   {1024, 384, 1152},
                               {1024, 384, 1536}, {1024, 1536, 384}, {512, 1024, 3072}, {512, 3072, 1024}};
  for (WeightFormat format : {WeightFormat::f32, WeightFormat::bf16, WeightFormat::i8})
    for (const auto& s : shapes) {
      std::vector<float> w = test::random_floats(size_t(s[1] * s[2]), 1), x = test::random_floats(size_t(s[0] * (s[1] + 16)), 2),
                         y(size_t(s[0] * (s[2] + 16)));
      Context context(table, threads);
      auto weight = table.pack(context, {"w", {{w.data(), Dtype::f32, {s[2], s[1]}}}, false}, format);
      LinearArgs args;
      args.x = {x.data(), s[0], s[1], s[1] + 16};
      args.weight = weight.get();
      args.y = {y.data(), s[0], s[2], s[2] + 16};
      std::vector<double> times;
      const double until = seconds() + 0.4;
      do {
        const double start = seconds();
        table.linear(context, args);
        times.push_back(seconds() - start);
      } while (seconds() < until);
      std::sort(times.begin(), times.end());
      const double flops = 2.0 * double(s[0] * s[1] * s[2]);
      std::printf("%-9s M=%-5ld K=%-5ld N=%-5ld median %8.1f best %8.1f GFLOP/s\n", weight_format_name(format), long(s[0]), long(s[1]), long(s[2]),
                  flops / times[times.size() / 2] / 1e9, flops / times[0] / 1e9);
    }
}
