// Steps of LoRA training (rank 16, all linear layers, InfoNCE between pairs of random texts), by shape; one JSON line each.
// Usage: train_bench MODEL_DIRECTORY DEVICE DTYPE LENGTHxTEXTS...
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/safetensors.h"
#include "train/trainer.h"

using namespace conan;

static double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

int main(int count, char** arguments) {
  if (count < 5) return std::fprintf(stderr, "usage: train_bench MODEL_DIRECTORY DEVICE DTYPE LENGTHxTEXTS...\n"), 2;
  try {
    ModelOptions options;
    options.directory = arguments[1], options.device = arguments[2], options.dtype = arguments[3];
    options.pooling = Pooling::last;
    train::TrainableOptions trainable;
    for (const auto& entry : std::filesystem::directory_iterator(options.directory)) {
      if (entry.path().extension() != ".safetensors") continue;
      const SafetensorsFile file(entry.path().string());
      for (const auto& [name, tensor] : file.tensors()) {
        if (name.find("_proj.weight") == std::string::npos) continue;
        train::LowRank& low = trainable.low_rank.emplace_back();
        low.tensor = name, low.rank = 16;
      }
    }
    train::OptimizerOptions optimizer;
    train::Trainer trainer(options, trainable, optimizer);
    for (int a = 4; a < count; ++a) {
      long length = 0, texts = 0;
      if (std::sscanf(arguments[a], "%ldx%ld", &length, &texts) != 2 || length < 1 || texts < 2 || texts % 2)
        return std::fprintf(stderr, "%s: expected LENGTHxTEXTS, an even number of texts\n", arguments[a]), 2;
      train::Chunk chunk;
      for (long i = 0; i < length * texts; ++i) chunk.ids.push_back(int32_t((i * 7919 + 5) % trainer.model().config().vocab_size));
      for (long b = 0; b <= texts; ++b) chunk.offsets.push_back(int32_t(b * length));
      train::StepOptions step;
      step.learning_rate = 1e-4;
      step.chunk_tokens = length * texts;
      step.contrastive.temperature = 0.05;
      for (int32_t i = 0; i < texts / 2; ++i) {
        step.contrastive.queries.push_back(i);
        step.contrastive.documents.push_back(int32_t(texts / 2) + i);
        step.contrastive.positives.push_back({i});
      }
      std::vector<double> times;
      double loss = 0;
      const double start = seconds();
      for (int run = 0; run < 7 && (run < 4 || seconds() - start < 3); ++run) {
        const double begin = seconds();
        const double now = trainer.step({chunk}, step).loss;
        if (run == 0) loss = now;
        if (run >= 2) times.push_back(seconds() - begin);
      }
      std::sort(times.begin(), times.end());
      std::printf("{\"shape\": \"%s\", \"seconds\": %.6f, \"loss\": %.6f}\n", arguments[a], times[times.size() / 2], loss);
      std::fflush(stdout);
    }
  } catch (const Error& error) {
    std::fprintf(stderr, "%s: %s\n", error.code().c_str(), error.what());
    return 1;
  }
}
