// Steps of training, InfoNCE between pairs of random texts, by shape; one JSON line each: `lora` (rank 16, all linear layers), or `recovery` of
// the projector (sounds, encoded before, against texts that are new in every step; everything else is frozen).
// Usage: train_bench MODEL_DIRECTORY DEVICE DTYPE lora|recovery LENGTHxTEXTS...
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "base/safetensors.h"
#include "train/trainer.h"

using namespace conan;

static double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

int main(int count, char** arguments) {
  const std::string mode = count > 4 ? arguments[4] : "";
  if (count < 6 || (mode != "lora" && mode != "recovery"))
    return std::fprintf(stderr, "usage: train_bench MODEL_DIRECTORY DEVICE DTYPE lora|recovery LENGTHxTEXTS...\n"), 2;
  try {
    const bool recovers = mode == "recovery";
    ModelOptions options;
    options.directory = arguments[1], options.device = arguments[2], options.dtype = arguments[3];
    options.pooling = Pooling::last;
    train::TrainableOptions trainable;
    int64_t width = 0;  // of the encoder's features
    for (const auto& entry : std::filesystem::directory_iterator(options.directory)) {
      if (entry.path().extension() != ".safetensors") continue;
      const SafetensorsFile file(entry.path().string());
      for (const auto& [name, tensor] : file.tensors()) {
        if (recovers && name.starts_with("audio_projector.")) trainable.dense.push_back(name);
        if (name == "audio_projector.linear_1.weight") width = tensor.shape[1];
        if (recovers || !name.starts_with("layers.") || name.find("_proj.weight") == std::string::npos) continue;
        train::LowRank& low = trainable.low_rank.emplace_back();
        low.tensor = name, low.rank = 16;
      }
    }
    const Json config = Json::parse(read_text_file(options.directory + "/config.json"), "config.json");
    train::OptimizerOptions optimizer;
    train::Trainer trainer(options, trainable, optimizer);
    for (int a = 5; a < count; ++a) {
      long length = 0, texts = 0;
      if (std::sscanf(arguments[a], "%ldx%ld", &length, &texts) != 2 || length < (recovers ? 3 : 1) || texts < 2 || texts % 2)
        return std::fprintf(stderr, "%s: expected LENGTHxTEXTS, an even number of texts\n", arguments[a]), 2;
      const long half = texts / 2;
      // One chunk, or sounds and texts apart.
      std::vector<train::Chunk> chunks(recovers ? 2 : 1);
      const auto each = texts / long(chunks.size());
      for (train::Chunk& chunk : chunks)
        for (long b = 0; b <= each; ++b) chunk.offsets.push_back(int32_t(b * length));
      const long least = recovers ? 300 : 0;  // none of them stands for a sound
      const auto fill = [&](train::Chunk& chunk, long first) {
        chunk.ids.clear();
        for (long i = first; i < first + length * each; ++i)
          chunk.ids.push_back(int32_t(least + (i * 7919 + 5) % (trainer.model().config().vocab_size - least)));
      };
      for (train::Chunk& chunk : chunks) fill(chunk, &chunk == &chunks[0] ? 0 : length * half);
      std::vector<float> features;
      if (recovers) {
        for (long b = 0; b < half; ++b) std::fill_n(chunks[0].ids.begin() + b * length + 1, length - 2, int32_t(config["audio_token_id"].number()));
        for (long i = 0; i < half * (length - 2) * width; ++i) features.push_back(float(std::sin(double(i) * 0.37)));
        chunks[0].media.sounds = {features.data(), std::vector<int32_t>(size_t(half), int32_t(length - 2)), true};
      }
      train::StepOptions step;
      step.learning_rate = 1e-4;
      step.chunk_tokens = length * texts;
      step.contrastive.temperature = 0.05;
      for (int32_t i = 0; i < half; ++i) {
        step.contrastive.queries.push_back(i);
        step.contrastive.documents.push_back(int32_t(half) + i);
        step.contrastive.positives.push_back({i});
      }
      std::vector<double> times;
      double loss = 0;
      const double start = seconds();
      for (int run = 0; run < 7 && (run < 4 || seconds() - start < 3); ++run) {
        if (recovers && run > 0) fill(chunks[1], length * (half + run * each));
        const double begin = seconds();
        const double now = trainer.step(chunks, step).loss;
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
