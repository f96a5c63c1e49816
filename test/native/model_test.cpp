// Whole models from test/fixtures/pico in every weight format, on every backend, through the reference: no golden values
// here (test/parity has those), but agreement of backends, and something for the sanitizers to watch.
// Usage: model_test PICO_DIRECTORY
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <numeric>

#include "check.h"
#include "media/audio.h"
#include "models/inspect.h"
#include "models/text_model.h"
#include "ops/backend.h"

using namespace conan;
using namespace conan::test;

namespace {

/// A model with a vision tower: pictures of several sizes in one batch, and alone.
void pictures(const std::string& directory) {
  const std::vector<std::pair<int32_t, int32_t>> grids = {{4, 6}, {2, 2}, {10, 4}};
  std::vector<int32_t> ids, offsets{0};
  std::vector<int64_t> patches;
  for (const auto& [rows, columns] : grids) {
    ids.insert(ids.end(), {20, 9});
    ids.insert(ids.end(), size_t(rows * columns / 4), 7);  // the image token
    ids.insert(ids.end(), {10, 30});
    offsets.push_back(int32_t(ids.size()));
    patches.push_back(rows * columns);
  }
  for (const char* dtype : {"float32", "bfloat16", "float16", "int8"}) {
    ModelOptions options;
    options.directory = directory;
    options.dtype = dtype;
    options.threads = 3;
    options.pooling = Pooling::last;
    TextModel model(options);
    const int64_t width = model.vision()->config().patch_values(), d = model.dimensions();
    const int64_t all = std::accumulate(patches.begin(), patches.end(), int64_t(0));
    const std::vector<float> values = random_floats(size_t(all * width), 3);
    const auto piece = [&](int64_t first, int64_t rows) { return Pictures::Piece{values.data() + first * width, nullptr, rows}; };
    const Pictures together_in_pieces{{piece(0, patches[0] + patches[1]), piece(patches[0] + patches[1], patches[2])}, grids};
    std::vector<float> together(size_t(3 * d)), alone(static_cast<size_t>(d));
    model.embed({ids.data(), offsets.data(), 3}, {together_in_pieces, {}}, true, d, together.data());
    model.vision_states({{piece(0, all)}, grids});
    int64_t first = 0;
    for (size_t i = 0; i < grids.size(); ++i) {
      const int32_t own[] = {0, offsets[i + 1] - offsets[i]};
      model.embed({ids.data() + offsets[i], own, 1}, {{{piece(first, patches[i])}, {grids[i]}}, {}}, true, d, alone.data());
      check(std::equal(alone.begin(), alone.end(), together.begin() + int64_t(i) * d),
            text(directory, " ", dtype, ": picture ", i, " alone differs"));
      first += patches[i];
    }
    check_error("INVALID_INPUT", "a picture without tokens", [&] {
      model.embed({ids.data(), offsets.data(), 1}, {together_in_pieces, {}}, true, d, together.data());
    });
    check_error("INVALID_INPUT", "tokens without a picture", [&] { model.embed({ids.data(), offsets.data(), 1}, {}, true, d, together.data()); });
  }
}

/// A model with an encoder of sound: spectrograms of noise of many lengths, in one batch and alone.
void sounds(const std::string& directory) {
  for (const char* dtype : {"float32", "bfloat16", "float16", "int8"}) {
    ModelOptions options;
    options.directory = directory;
    options.dtype = dtype;
    options.threads = 3;
    options.pooling = Pooling::last;
    TextModel model(options);
    const int64_t d = model.dimensions(), bins = model.audio()->bins();
    Media media;
    std::vector<float> features;
    std::vector<int32_t> ids, offsets{0};
    for (int64_t samples : {1000, 160 * 100, 44123, 16000 * 7}) {
      const std::vector<float> heard = media::resample(random_floats(size_t(samples), 5).data(), samples, 44100, 16000);
      const media::MelLayout layout{16000, 400, 160, bins};
      const int64_t frames = media::mel_frames(int64_t(heard.size()), layout);
      features.resize(features.size() + size_t(frames * bins));
      media::log_mel(heard.data(), int64_t(heard.size()), layout, features.data() + features.size() - frames * bins);
      media.sounds.frames.push_back(int32_t(frames));
      ids.insert(ids.end(), size_t(model.audio()->tokens(frames)), model.audio_token());
      ids.push_back(20);
      offsets.push_back(int32_t(ids.size()));
    }
    media.sounds.features = features.data();
    const size_t n = media.sounds.frames.size();
    std::vector<float> together(n * size_t(d)), alone(static_cast<size_t>(d));
    model.embed({ids.data(), offsets.data(), int(n)}, media, true, d, together.data());
    model.audio_states(media.sounds);
    int64_t first = 0;
    for (size_t i = 0; i < n; ++i) {
      const int32_t own[] = {0, offsets[i + 1] - offsets[i]};
      Media one;
      one.sounds = {features.data() + first * bins, {media.sounds.frames[i]}};
      model.embed({ids.data() + offsets[i], own, 1}, one, true, d, alone.data());
      check(std::equal(alone.begin(), alone.end(), together.begin() + int64_t(i) * d), text(directory, " ", dtype, ": sound ", i, " alone differs"));
      first += media.sounds.frames[i];
    }
    check_error("INVALID_INPUT", "a sound without tokens", [&] { model.embed({ids.data(), offsets.data(), 1}, media, true, d, together.data()); });
    check_error("INVALID_INPUT", "tokens without a sound", [&] { model.embed({ids.data(), offsets.data(), 1}, {}, true, d, together.data()); });
  }
}

/// Every GPU against the CPU: a batch, and its third sequence alone.
void gpus(const std::string& directory, const TokenBatch& batch) {
  for (const GpuReport& gpu : gpu_reports()) {
    if (gpu.device.empty()) continue;
    for (const char* dtype : {"float32", "bfloat16", "int8"}) {
      std::vector<std::vector<float>> results;
      for (const std::string& device : {std::string("cpu"), gpu.device}) {
        ModelOptions options;
        options.directory = directory, options.dtype = dtype, options.device = device;
        TextModel model(options);
        const int64_t d = model.dimensions();
        std::vector<float> out(size_t(batch.sequences * d)), alone(static_cast<size_t>(d));
        model.embed(batch, {}, true, d, out.data());
        const int32_t begin = batch.offsets[2], own[] = {0, batch.offsets[3] - begin};
        model.embed({batch.ids + begin, own, 1}, {}, true, d, alone.data());
        check(std::equal(alone.begin(), alone.end(), out.begin() + 2 * d), text(directory, " ", dtype, " on ", device, ": alone differs"));
        results.push_back(out);
      }
      const size_t d = results[0].size() / size_t(batch.sequences);
      double worst = 1;
      for (size_t at = 0; at < results[0].size(); at += d) {
        double cosine = 0;
        for (size_t i = at; i < at + d; ++i) cosine += double(results[0][i]) * results[1][i];
        worst = std::min(worst, cosine);
      }
      const double least = dtype == std::string("float32") ? 0.99999 : dtype == std::string("bfloat16") ? 0.999 : 0.99;
      check(worst > least, text(directory, " ", dtype, " on ", gpu.device, ": cosine ", worst));
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) return std::printf("usage: model_test PICO_DIRECTORY\n"), 2;
  std::vector<std::string> directories;
  for (const auto& entry : std::filesystem::directory_iterator(arguments[1])) directories.push_back(entry.path().string());
  std::sort(directories.begin(), directories.end());
  const std::vector<int> lengths = {3, 1, 40, 64, 17, 2, 33};
  std::vector<int32_t> ids, offsets{0};
  std::mt19937 engine(1);
  for (int n : lengths) {
    for (int i = 0; i < n; ++i) ids.push_back(int32_t(16 + engine() % 250));
    offsets.push_back(int32_t(ids.size()));
  }
  const TokenBatch batch{ids.data(), offsets.data(), int(lengths.size())};
  for (const std::string& directory : directories) {
    gpus(directory, batch);
    check(inspect_directory(directory).find("\"problems\":[]") != std::string::npos, directory + ": inspect finds no problems");
    for (const char* dtype : {"float32", "bfloat16", "float16", "int8"})
      for (Pooling pooling : {Pooling::mean, Pooling::cls, Pooling::last}) {
        std::vector<std::vector<float>> results;
        for (int threads : {1, 3}) {
          ModelOptions options;
          options.directory = directory;
          options.dtype = dtype;
          options.threads = threads;
          options.pooling = pooling;
          TextModel model(options);
          std::vector<float> out(size_t(batch.sequences * model.dimensions()));
          model.embed(batch, {}, true, model.dimensions(), out.data());
          results.push_back(out);
          model.embed(batch, {}, true, 8, out.data());
          model.hidden_states(batch, {});
        }
        check(results[0] == results[1], text(directory, " ", dtype, ": 3 threads differ from 1"));
      }
    ModelOptions options;
    options.directory = directory;
    options.dtype = "float32";
    TextModel model(options);
    std::vector<float> out(size_t(model.dimensions()));
    const int32_t bad_id[] = {100000}, one[] = {0, 1}, none[] = {0, 0};
    check_error("INVALID_INPUT", "a foreign token id", [&] { model.embed({bad_id, one, 1}, {}, true, 8, out.data()); });
    check_error("INVALID_INPUT", "an empty sequence", [&] { model.embed({bad_id, none, 1}, {}, true, 8, out.data()); });
    std::vector<int32_t> endless(1000, 20);
    const int32_t thousand[] = {0, 1000};
    check_error("INPUT_TOO_LONG", "a long sequence", [&] { model.embed({endless.data(), thousand, 1}, {}, true, 8, out.data()); });
  }
  const std::filesystem::path fixtures = std::filesystem::path(arguments[1]).parent_path();
  pictures((fixtures / "vision" / "qwen3_vl").string());
  sounds((fixtures / "audio" / "omni").string());
  return report("model_test");
}
