#include "models/text_model.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <map>

#include "base/error.h"
#include "base/thread_pool.h"
#include "ops/backend.h"

namespace conan {

namespace {

WeightFormat choose_format(const std::string& dtype, Dtype checkpoint) {
  // auto: what the checkpoint stores. Its weights stay exact; narrower activations are what its own authors run.
  if (dtype == "auto") return checkpoint == Dtype::bf16 ? WeightFormat::bf16 : checkpoint == Dtype::f16 ? WeightFormat::f16 : WeightFormat::f32;
  for (WeightFormat format : {WeightFormat::f32, WeightFormat::bf16, WeightFormat::f16, WeightFormat::i8})
    if (dtype == weight_format_name(format)) return format;
  fail("INVALID_OPTION", "dtype: expected auto, float32, bfloat16, float16 or int8, got \"", dtype, "\"");
}

/// The dtype of most of the checkpoint's parameters.
Dtype main_dtype(const Checkpoint& checkpoint) {
  std::map<Dtype, int64_t> sizes;
  for (const std::string& name : checkpoint.names()) sizes[checkpoint.find(name)->dtype] += checkpoint.find(name)->size();
  return std::max_element(sizes.begin(), sizes.end(), [](const auto& a, const auto& b) { return a.second < b.second; })->first;
}

}  // namespace

TextModel::TextModel(const ModelOptions& options, WeightObserver* observer) : observer_(observer), pooling_(options.pooling) {
  const std::string config_path = options.directory + "/config.json";
  const Json config = Json::parse(read_text_file(config_path), config_path);
  TransformerConfig transformer = read_transformer_config(config, config_path);
  checkpoint_ = std::make_unique<Checkpoint>(options.directory);
  if (checkpoint_->names().empty()) fail("TENSOR_MISSING", options.directory, ": the checkpoint holds no tensors");
  for (const std::string& adapter : options.adapters) adapters_.push_back(std::make_unique<Adapter>(adapter));
  checkpoint_dtype_ = main_dtype(*checkpoint_);
  format_ = choose_format(options.dtype, checkpoint_dtype_);

  const OperationTable& table = conan::backend(options.device);
  require(table);
  context_ = std::make_unique<Context>(table, options.threads > 0 ? options.threads : ThreadPool::default_threads());
  context_->cancelled = &cancelled_;
  std::optional<Pooling> one_row;
  if (pooling_ == Pooling::cls || pooling_ == Pooling::last) one_row = pooling_;
  if (observer_) require_training(table);
  WeightLoader& loader = open_loader(probe_tensor(transformer));
  transformer_ = std::make_unique<Transformer>(*context_, std::move(transformer), loader, format_, one_row);
  if (std::optional<VisionConfig> vision = read_vision_config(config, config_path)) {
    if (vision->outputs != this->config().hidden)
      fail("CONFIG_INVALID", config_path, ": \"out_hidden_size\": expected the language model's ", this->config().hidden, ", got ", vision->outputs);
    WeightLoader& tower_loader = open_loader(probe_tensor(vision->tower));
    vision_ = std::make_unique<VisionTower>(*context_, std::move(*vision), tower_loader, format_);
  }
  load_audio(config, config_path);
  for (const auto& adapter : adapters_) adapter->require_all_used();
  for (const std::string& name : checkpoint_->names())
    if (std::none_of(loaders_.begin(), loaders_.end(), [&](const auto& part) { return part->taken().count(name); })) unused_.push_back(name);
  dimensions_ = this->config().hidden;

  std::vector<std::unique_ptr<Adapter>> none;
  for (const DenseOptions& dense : options.dense) {
    if (dense.inputs != dimensions_) fail("CONFIG_INVALID", dense.directory, ": \"in_features\": expected ", dimensions_, ", got ", dense.inputs);
    dense_checkpoints_.push_back(std::make_unique<Checkpoint>(dense.directory));
    WeightLoader loader(*dense_checkpoints_.back(), none, "linear.weight", nullptr, observer_);
    Dense layer;
    // In f32 whatever the model's dtype: a small matrix at the very end, where rounding is not averaged out.
    layer.weight = loader.pack(*context_, {"linear"}, {dense.outputs}, dense.inputs, WeightFormat::f32);
    if (dense.bias) layer.bias = loader.take_values("linear.bias", {dense.outputs});
    layer.activation = dense.activation;
    dense_.push_back(std::move(layer));
    dimensions_ = dense.outputs;
  }
  for (const auto& loader : loaders_) loader->reside(*context_, residents_);
}

WeightLoader& TextModel::open_loader(const std::string& probe) {
  loaders_.push_back(std::make_unique<WeightLoader>(*checkpoint_, adapters_, probe, nullptr, observer_));
  return *loaders_.back();
}

void TextModel::load_audio(const Json& config, const std::string& path) {
  const std::optional<AudioConfig> audio = read_audio_config(config, path);
  if (!audio) return;
  audio_token_ = audio->token;
  audio_ = load_audio_encoder(*context_, *audio, open_loader(audio->probe), format_);
  const ConfigReader projector(config["audio_projector_config"], path + ": audio_projector_config");
  projector_ = std::make_unique<Projector>(*context_, projector, open_loader(Projector::kProbe), format_);
  if (projector_->inputs() != audio_->outputs())
    fail("CONFIG_INVALID", projector.subject(), ": \"input_size\": expected the encoder's ", audio_->outputs(), ", got ", projector_->inputs());
  if (projector_->outputs() != this->config().hidden)
    fail("CONFIG_INVALID", projector.subject(), ": \"output_size\": expected the language model's ", this->config().hidden, ", got ",
         projector_->outputs());
}

size_t TextModel::memory_bytes() const {
  size_t total = transformer_->weight_bytes() + context_->scratch_bytes() + (vision_ ? vision_->weight_bytes() : 0);
  if (audio_) total += audio_->weight_bytes() + projector_->weight_bytes();
  for (const Dense& dense : dense_) total += dense.weight->bytes;
  return total;
}

bool TextModel::stands_for_picture(int32_t id) const {
  return vision_ && (id == vision_->config().image_token || id == vision_->config().video_token);
}
bool TextModel::stands_for_sound(int32_t id) const { return audio_ && id == audio_token_; }

/// Where media stand in a batch, and positions of M-RoPE: text and sound count on along all axes; a picture stays at one time, spreads
/// over rows and columns, and what follows goes on after its longer side.
TransformerInput TextModel::input_of(const TokenBatch& batch, const Media& media, TrainingPass* pass) {
  TransformerInput input;
  input.batch = batch;
  const auto& [pictures, sounds] = media;
  if (!vision_ && !pictures.grids.empty()) fail("INVALID_INPUT", "expected no pictures: this model takes none");
  if (!audio_ && !sounds.frames.empty()) fail("INVALID_INPUT", "expected no sounds: this model takes none");
  if (!vision_ && !audio_) return input;
  if (vision_) vision_->check(pictures);
  const int64_t T = batch.tokens();
  std::vector<int32_t> positions(size_t(3 * T)), seen, heard;
  size_t picture = 0, sound = 0;
  for (int b = 0; b < batch.sequences; ++b) {
    int32_t at = 0;
    for (int32_t t = batch.offsets[b]; t < batch.offsets[b + 1];) {
      const int32_t id = batch.ids[t];
      int32_t end = t + 1;
      const bool is_picture = stands_for_picture(id), is_sound = stands_for_sound(id);
      while ((is_picture || is_sound) && end < batch.offsets[b + 1] && batch.ids[end] == id) ++end;
      if (!is_picture) {
        if (is_sound) {
          if (sound == sounds.frames.size()) fail("INVALID_INPUT", "input ", b, ": its tokens stand for more sounds than the ", sound, " there are");
          if (const int64_t tokens = sounds.encoded ? sounds.frames[sound] : audio_->tokens(sounds.frames[sound]); end - t != tokens)
            fail("INVALID_INPUT", "input ", b, ": expected ", tokens, " tokens for a sound of ", sounds.frames[sound], " frames, got ", end - t);
          ++sound;
        }
        for (; t < end; ++t, ++at) {
          if (is_sound) heard.push_back(t);
          for (int64_t axis = 0; axis < 3; ++axis) positions[size_t(axis * T + t)] = at;
        }
        continue;
      }
      if (picture == pictures.grids.size())
        fail("INVALID_INPUT", "input ", b, ": its tokens stand for more pictures than the ", picture, " there are");
      const auto [grid_rows, grid_columns] = pictures.grids[picture];
      const int64_t rows = grid_rows / vision_->config().merge, columns = grid_columns / vision_->config().merge;
      if (end - t != rows * columns)
        fail("INVALID_INPUT", "input ", b, ": expected ", rows * columns, " tokens for a picture of ", grid_rows, " x ", grid_columns,
             " patches, got ", end - t);
      for (int64_t i = 0; t < end; ++t, ++i) {
        seen.push_back(t);
        positions[size_t(t)] = at;
        positions[size_t(T + t)] = at + int32_t(i / columns);
        positions[size_t(2 * T + t)] = at + int32_t(i % columns);
      }
      at += int32_t(std::max(rows, columns));
      ++picture;
    }
  }
  if (picture != pictures.grids.size()) fail("INVALID_INPUT", "expected tokens for ", pictures.grids.size(), " pictures, found them for ", picture);
  if (sound != sounds.frames.size()) fail("INVALID_INPUT", "expected tokens for ", sounds.frames.size(), " sounds, found them for ", sound);
  if (!heard.empty()) {
    const int64_t n = sounds.frame_count(), d = audio_->outputs();
    Transformer::Observer audio_record;
    if (pass && audio_->trains(*pass->gradients)) audio_record = audio_->record(*context_, pass->heard_tape, *pass->gradients);
    const Matrix features = sounds.encoded ? Matrix{const_cast<float*>(sounds.features), n, d, d} : audio_->forward(*context_, sounds, audio_record);
    if (pass) pass->heard = features, pass->sources.push_back(0);
    if (pass && sounds.encoded) pass->given = reside(*context_, features.data, size_t(n * d) * sizeof(float));
    input.replaced.push_back({std::move(heard), projector_->forward(*context_, features)});
  }
  if (seen.empty()) return input;  // positions equal along all axes: as any text
  const std::vector<RopeConfig>& ropes = config().ropes;
  if (std::any_of(ropes.begin(), ropes.end(), [](const RopeConfig& rope) { return !rope.axis.empty(); })) input.positions = std::move(positions);
  Transformer::Observer vision_record;
  if (pass && vision_->trains(*pass->gradients)) vision_record = vision_->record(*context_, pass->seen_tape, *pass->gradients);
  VisionTower::Features features = vision_->forward(*context_, pictures, vision_record);
  for (const Matrix& values : features.deepstack) input.added.push_back({seen, values});
  if (pass) pass->sources.push_back(1);
  input.replaced.push_back({std::move(seen), features.tokens});
  return input;
}

Matrix TextModel::apply(const Dense& dense, const Matrix& x) {
  LinearArgs args;
  args.x = x;
  args.weight = dense.weight.get();
  args.bias = dense.bias.data();
  args.activation = dense.activation;
  args.y = context_->scratch.matrix(x.rows, dense.weight->rows);
  context_->ops.linear(*context_, args);
  return args.y;
}

Matrix TextModel::infer(const TokenBatch& batch, const Media& media) {
  Matrix x = transformer_->forward(*context_, input_of(batch, media), pooling_);
  for (const Dense& dense : dense_) x = apply(dense, x);
  return x;
}

Matrix TextModel::finished(const TokenBatch& batch, const Media& media, bool normalize, int64_t dimensions) {
  const Matrix x = infer(batch, media).columns(0, dimensions);
  if (normalize) context_->ops.normalize(*context_, {x});
  return x;
}

/// Null: this pass is not one that a device remembers. Few tokens ask for as many operations as many, and wait for them to be asked for.
TextModel::Repeated* TextModel::repeated(const TokenBatch& batch, const Media& media, bool normalize, int64_t dimensions) {
  constexpr int64_t kMostTokens = 512;
  constexpr size_t kMost = 128;  // lengths that are looked out for; a recording takes about a megabyte
  constexpr int64_t kOften = 3;  // to record costs as much as a pass
  const bool text = media.pictures.grids.empty() && media.sounds.frames.empty();
  if (!context_->ops.record || observer_ || !text || batch.tokens() > kMostTokens) return nullptr;
  transformer_->check(batch);
  // What depends on the ids: positions where padding does not count, and whether media are missing.
  const auto is_special = [&](int32_t id) { return id == config().pad_id || stands_for_picture(id) || stands_for_sound(id); };
  if (std::any_of(batch.ids, batch.ids + batch.tokens(), is_special)) return nullptr;
  if (const int64_t moves = context_->scratch.moves(); moves != moves_) {
    repeated_.clear();
    moves_ = moves;
  }
  std::vector<int32_t> key(batch.offsets, batch.offsets + batch.sequences + 1);
  key.insert(key.end(), {int32_t(dimensions), int32_t(normalize)});
  Repeated& own = repeated_[std::move(key)];
  own.last = ++passes_;
  if (++own.seen == kOften) {
    own.recording = context_->ops.record(*context_, {{batch.ids, size_t(batch.tokens()) * sizeof(int32_t)}},
                                         [&] { own.vectors = finished(batch, media, normalize, dimensions); });
    if (!own.recording) own.seen = std::numeric_limits<int64_t>::min();
  }
  if (repeated_.size() > kMost) {
    const auto by_last = [](const auto& a, const auto& b) { return a.second.last < b.second.last; };
    repeated_.erase(std::min_element(repeated_.begin(), repeated_.end(), by_last));
  }
  return own.recording ? &own : nullptr;
}

void TextModel::embed(const TokenBatch& batch, const Media& media, bool normalize, int64_t dimensions, float* out) {
  Context& context = *context_;
  const Matrix vectors{out, batch.sequences, dimensions, dimensions};
  std::unique_ptr<Arrival> arrival;
  {
    std::lock_guard<std::mutex> lock(running_);
    cancelled_ = false;
    Arena::Scope scope(context.scratch);
    Repeated* const known = repeated(batch, media, normalize, dimensions);
    if (known) context.ops.replay(context, *known->recording, {batch.ids});
    const Matrix x = known ? known->vectors : finished(batch, media, normalize, dimensions);
    arrival = bring(context, x);
  }
  // The next pass may be asked for meanwhile: a device comes to it, and to the memory it shares with this one, behind this one.
  std::copy_n(arrival->wait(), vectors.rows * dimensions, out);
  for (int64_t b = 0; b < vectors.rows; ++b) {
    uint32_t most = 0;  // magnitudes by their bits: a sum of floats would be added up one by one
    for (int64_t c = 0; c < dimensions; ++c) most = std::max(most, std::bit_cast<uint32_t>(vectors.row(b)[c]) & 0x7fffffff);
    if (most >= 0x7f800000) fail("VECTOR_NOT_FINITE", "input ", b, ": its vector holds a NaN or an infinity");
  }
}

std::vector<std::vector<float>> TextModel::hidden_states(const TokenBatch& batch, const Media& media) {
  std::lock_guard<std::mutex> lock(running_);
  cancelled_ = false;
  Arena::Scope scope(context_->scratch);
  std::vector<std::vector<float>> out;
  const auto keep = [&](const Matrix& x) { out.push_back(values_of(*context_, x)); };
  keep(transformer_->forward(*context_, input_of(batch, media), std::nullopt, [&](int64_t, const Matrix& x) { keep(x); }));
  return out;
}

std::vector<std::vector<float>> TextModel::vision_states(const Pictures& pictures) {
  if (!vision_) fail("INVALID_INPUT", "expected a model with a vision tower");
  std::lock_guard<std::mutex> lock(running_);
  Arena::Scope scope(context_->scratch);
  std::vector<std::vector<float>> out;
  const auto keep = [&](const Matrix& x) { out.push_back(values_of(*context_, x)); };
  const VisionTower::Features features = vision_->forward(*context_, pictures, [&](int64_t, const Matrix& x) { keep(x); });
  keep(features.tokens);
  for (const Matrix& values : features.deepstack) keep(values);
  return out;
}

std::vector<float> TextModel::encode(const Sounds& sounds) {
  if (!audio_) fail("INVALID_INPUT", "expected a model with an encoder of sound");
  std::lock_guard<std::mutex> lock(running_);
  Arena::Scope scope(context_->scratch);
  return values_of(*context_, audio_->forward(*context_, sounds));
}

std::vector<std::vector<float>> TextModel::audio_states(const Sounds& sounds) {
  if (!audio_) fail("INVALID_INPUT", "expected a model with an encoder of sound");
  std::lock_guard<std::mutex> lock(running_);
  Arena::Scope scope(context_->scratch);
  std::vector<std::vector<float>> out;
  const auto keep = [&](const Matrix& x) { out.push_back(values_of(*context_, x)); };
  const Matrix features = audio_->forward(*context_, sounds, [&](int64_t, const Matrix& x) { keep(x); });
  keep(features);
  keep(projector_->forward(*context_, features));
  return out;
}

}  // namespace conan
