// Matrix multiplication against the rate of the multiply instructions, measured in the same run: GFLOP/s and share of
// the ceiling per format and shape. Usage: gemm_bench [threads]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "../../test/native/check.h"
#include "base/thread_pool.h"
#include "ops/backend.h"

using namespace conan;

static double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// The rate with everything in L1: a tall product whose weights are one panel.
int main(int count, char** arguments) {
  const int threads = count > 1 ? std::atoi(arguments[1]) : ThreadPool::default_threads();
  const OperationTable& table = cpu_backend();
  const CpuReport report = cpu_report();
  std::printf("%s, %d threads; one thread in L1: float32 %.0f GFLOP/s, vdpbf16ps %.0f\n", table.name, threads, report.f32_gflops,
              report.bf16_dot_gflops);
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
