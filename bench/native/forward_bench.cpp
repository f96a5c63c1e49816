// A whole forward pass on random tokens, last-token pooling, by shape; one JSON line each.
// Usage: forward_bench MODEL_DIRECTORY DEVICE DTYPE LENGTHxSEQUENCES...
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "base/error.h"
#include "models/text_model.h"

using namespace conan;

static double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

int main(int count, char** arguments) {
  if (count < 5) return std::fprintf(stderr, "usage: forward_bench MODEL_DIRECTORY DEVICE DTYPE LENGTHxSEQUENCES...\n"), 2;
  try {
    ModelOptions options;
    options.directory = arguments[1], options.device = arguments[2], options.dtype = arguments[3];
    options.pooling = Pooling::last;
    const double start = seconds();
    TextModel model(options);
    const double loaded = seconds() - start;
    for (int a = 4; a < count; ++a) {
      long length = 0, sequences = 0;
      if (std::sscanf(arguments[a], "%ldx%ld", &length, &sequences) != 2 || length < 1 || sequences < 1)
        return std::fprintf(stderr, "%s: expected LENGTHxSEQUENCES\n", arguments[a]), 2;
      std::vector<int32_t> ids, offsets(1);
      for (long i = 0; i < length * sequences; ++i) ids.push_back(int32_t((i * 7919 + 5) % model.config().vocab_size));
      for (long b = 1; b <= sequences; ++b) offsets.push_back(int32_t(b * length));
      std::vector<float> vectors(size_t(sequences * model.dimensions()));
      std::vector<double> times;
      for (int run = 0; run < 7; ++run) {
        const double begin = seconds();
        model.embed({ids.data(), offsets.data(), int(sequences)}, {}, true, model.dimensions(), vectors.data());
        if (run >= 2) times.push_back(seconds() - begin);
      }
      std::sort(times.begin(), times.end());
      std::printf("{\"shape\": \"%s\", \"seconds\": %.6f, \"loaded\": %.2f, \"vector\": [%.6f, %.6f, %.6f, %.6f]}\n", arguments[a],
                  times[times.size() / 2], loaded, double(vectors[0]), double(vectors[1]), double(vectors[2]), double(vectors[3]));
      std::fflush(stdout);
    }
  } catch (const Error& error) {
    std::fprintf(stderr, "%s: %s\n", error.code().c_str(), error.what());
    return 1;
  }
}
