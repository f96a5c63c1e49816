// A whole forward pass on random tokens, last-token pooling, by shape; one JSON line each. LENGTH is a number, or A-B: text i has
// A + 7919 i mod (B - A + 1) tokens.
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
      long length = 0, longest = 0, sequences = 0;
      const bool mixed = std::sscanf(arguments[a], "%ld-%ldx%ld", &length, &longest, &sequences) == 3;
      if (!mixed && std::sscanf(arguments[a], "%ldx%ld", &length, &sequences) == 2) longest = length;
      if (length < 1 || longest < length || sequences < 1) return std::fprintf(stderr, "%s: expected LENGTHxSEQUENCES\n", arguments[a]), 2;
      std::vector<int32_t> ids, offsets(1);
      for (long b = 0; b < sequences; ++b) offsets.push_back(offsets.back() + int32_t(length + b * 7919 % (longest - length + 1)));
      for (long i = 0; i < offsets.back(); ++i) ids.push_back(int32_t((i * 7919 + 5) % model.config().vocab_size));
      std::vector<float> vectors(size_t(sequences * model.dimensions()));
      std::vector<double> times;
      const double first = seconds();
      for (int run = 0; run < 7 && (run < 4 || seconds() - first < 2); ++run) {
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
