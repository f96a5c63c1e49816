#include "models/inspect.h"

#include <algorithm>
#include <map>

#include "base/error.h"
#include "models/audio/encoder.h"
#include "models/projector.h"
#include "models/vision.h"
#include "ops/backend.h"

namespace conan {

namespace {
std::string list(const std::vector<std::string>& items) {
  std::string out = "[";
  for (size_t i = 0; i < items.size(); ++i) out += (i ? "," : "") + json_quote(items[i]);
  return out + "]";
}
}  // namespace

std::string inspect_directory(const std::string& directory) {
  const std::string path = directory + "/config.json";
  const Json json = Json::parse(read_text_file(path), path);
  Checkpoint checkpoint(directory);

  std::string tensors;
  std::map<std::string, int64_t> dtypes;
  int64_t parameters = 0, bytes = 0;
  for (const std::string& name : checkpoint.names()) {
    const TensorView& t = *checkpoint.find(name);
    tensors += (tensors.empty() ? "" : ",") +
               text("{\"name\":", json_quote(name), ",\"dtype\":\"", dtype_name(t.dtype), "\",\"shape\":", shape_text(t.shape), "}");
    dtypes[dtype_name(t.dtype)] += t.size();
    parameters += t.size();
    bytes += int64_t(t.bytes());
  }
  std::string dtype_counts;
  for (const auto& [name, count] : dtypes) dtype_counts += text(dtype_counts.empty() ? "" : ",", json_quote(name), ":", count);

  std::vector<std::string> problems, unused = checkpoint.names();
  std::string prefix, shape = "null";
  try {
    TransformerConfig config = read_transformer_config(json, path);
    shape = text("{\"hidden\":", config.hidden, ",\"layers\":", config.layers, ",\"heads\":", config.heads, ",\"kvHeads\":", config.kv_heads,
                 ",\"headDim\":", config.head_dim, ",\"intermediate\":", config.intermediate, ",\"vocabulary\":", config.vocab_size,
                 ",\"maxPositions\":", config.max_positions, "}");
    std::vector<std::unique_ptr<Adapter>> none;
    const auto with_loader = [&](const std::string& probe, const auto& load) {
      WeightLoader loader(checkpoint, none, probe, &problems);
      load(loader);
      unused.erase(std::remove_if(unused.begin(), unused.end(), [&](const std::string& name) { return loader.taken().count(name); }), unused.end());
    };
    Context context(cpu_backend(), 1);
    with_loader(probe_tensor(config), [&](WeightLoader& loader) {
      prefix = loader.prefix();
      Transformer(context, std::move(config), loader, WeightFormat::f32, std::nullopt);
    });
    if (std::optional<VisionConfig> vision = read_vision_config(json, path))
      with_loader(probe_tensor(vision->tower), [&](WeightLoader& loader) { VisionTower(context, std::move(*vision), loader, WeightFormat::f32); });
    if (const std::optional<AudioConfig> audio = read_audio_config(json, path)) {
      with_loader(audio->probe, [&](WeightLoader& loader) { load_audio_encoder(context, *audio, loader, WeightFormat::f32); });
      const ConfigReader projector(json["audio_projector_config"], path + ": audio_projector_config");
      with_loader(Projector::kProbe, [&](WeightLoader& loader) { Projector(context, projector, loader, WeightFormat::f32); });
    }
  } catch (const Error& error) {
    problems.push_back(error.what());
  }
  return text("{\"model_type\":", json_quote(json["model_type"].string()), ",\"prefix\":", json_quote(prefix), ",\"config\":", shape,
              ",\"parameters\":", parameters, ",\"bytes\":", bytes, ",\"dtypes\":{", dtype_counts, "},\"tensors\":[", tensors,
              "],\"unused\":", list(unused), ",\"problems\":", list(problems), "}");
}

}  // namespace conan
