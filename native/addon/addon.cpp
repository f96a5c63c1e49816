// What JavaScript calls. Every function is thin: it reads its arguments, and runs the work on another thread where it takes long (task.h).
// Native errors become JavaScript errors with a `code`.
#include <napi.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "addon/task.h"
#include "base/error.h"
#include "base/safetensors.h"
#include "base/thread_pool.h"
#include "media/audio.h"
#include "media/image.h"
#include "merge/fuse.h"
#include "merge/geometry.h"
#include "models/inspect.h"
#include "models/similarity.h"
#include "models/text_model.h"
#include "ops/backend.h"
#include "train/trainer.h"

using namespace conan;

namespace {

template <class Values>
Napi::Value array_of(Napi::Env env, const Values& values) {
  auto out = Napi::TypedArrayOf<std::decay_t<decltype(*values.data())>>::New(env, size_t(values.size()));
  std::copy_n(values.data(), values.size(), out.Data());
  return out;
}

/// JavaScript takes a share in the numbers where they are many, since a copy would hold up its thread. Where it cannot have memory of others
/// (Electron), they are copied.
template <class Values>
Napi::Value shared_array(Napi::Env env, const std::shared_ptr<Values>& values) {
  constexpr size_t few = 65536;
  using Number = std::decay_t<decltype(*values->data())>;
  const size_t bytes = values->size() * sizeof(Number);
  if (bytes >= few) {
    napi_value buffer;
    auto share = std::make_unique<std::shared_ptr<Values>>(values);
    const auto release = [](napi_env, void*, void* held) { delete static_cast<std::shared_ptr<Values>*>(held); };
    if (napi_create_external_arraybuffer(env, values->data(), bytes, release, share.get(), &buffer) == napi_ok) {
      share.release();
      return Napi::TypedArrayOf<Number>::New(env, values->size(), Napi::ArrayBuffer(env, buffer), 0);
    }
  }
  return array_of(env, *values);
}

// ---- models

struct Handle {
  std::shared_ptr<TextModel> model;         // running tasks hold it too
  std::shared_ptr<train::Trainer> trainer;  // owns the model, where it is in training
  int64_t reported = 0;                     // bytes told to the garbage collector

  void report(Napi::Env env) {
    const int64_t now = model ? int64_t(model->memory_bytes()) : 0;
    Napi::MemoryManagement::AdjustExternalMemory(env, now - reported);
    reported = now;
  }
};

constexpr napi_type_tag kModelTag = {0x6f4b1c0d2a3e4f58, 0x9a7c5e3d1b2f4a60};

Handle* handle_of(const Napi::CallbackInfo& info) {
  Napi::Value value = info[0];
  if (!value.IsExternal() || !value.As<Napi::External<Handle>>().CheckTypeTag(&kModelTag))
    throw Failure{"INVALID_INPUT", "expected a native model handle"}.to_js(info.Env());
  Handle* handle = value.As<Napi::External<Handle>>().Data();
  if (!handle->model) throw Failure{"DISPOSED", "the model was disposed"}.to_js(info.Env());
  return handle;
}

std::vector<std::string> strings(const Napi::Value& value) {
  std::vector<std::string> out;
  if (!value.IsArray()) return out;
  Napi::Array array = value.As<Napi::Array>();
  for (uint32_t i = 0; i < array.Length(); ++i) out.push_back(array.Get(i).ToString());
  return out;
}

Pooling pooling_of(const std::string& name) {
  static const std::pair<const char*, Pooling> names[] = {{"cls", Pooling::cls},   {"lasttoken", Pooling::last},
                                                          {"mean", Pooling::mean}, {"mean_sqrt_len_tokens", Pooling::mean_sqrt_len},
                                                          {"max", Pooling::max},   {"weightedmean", Pooling::weighted_mean}};
  for (const auto& [known, pooling] : names)
    if (name == known) return pooling;
  fail("CONFIG_INVALID", "pooling: expected cls, lasttoken, mean, mean_sqrt_len_tokens, max or weightedmean, got \"", name, "\"");
}

Activation activation_of(const std::string& name) {
  static const std::pair<const char*, Activation> names[] = {{"identity", Activation::none},
                                                             {"tanh", Activation::tanh},
                                                             {"relu", Activation::relu},
                                                             {"gelu", Activation::gelu_erf},
                                                             {"silu", Activation::silu}};
  for (const auto& [known, activation] : names)
    if (name == known) return activation;
  fail("CONFIG_INVALID", "dense activation: expected identity, tanh, relu, gelu or silu, got \"", name, "\"");
}

ModelOptions read_options(const Napi::Object& js) {
  ModelOptions options;
  options.directory = js.Get("directory").ToString();
  options.adapters = strings(js.Get("adapters"));
  options.dtype = js.Get("dtype").ToString();
  options.threads = js.Get("threads").ToNumber();
  if (js.Get("device").IsString()) options.device = js.Get("device").ToString();
  options.pooling = pooling_of(js.Get("pooling").ToString());
  Napi::Array dense = js.Get("dense").As<Napi::Array>();
  for (uint32_t i = 0; i < dense.Length(); ++i) {
    Napi::Object layer = dense.Get(i).As<Napi::Object>();
    options.dense.push_back({layer.Get("directory").ToString(), layer.Get("inputs").ToNumber().Int64Value(),
                             layer.Get("outputs").ToNumber().Int64Value(), layer.Get("bias").ToBoolean(),
                             activation_of(layer.Get("activation").ToString())});
  }
  return options;
}

/// {dense: [tensor], lowRank: [{tensor, rank, scale}], dropout, seed, optimizer: {beta1, beta2, epsilon, weightDecay, clip, anchor, activationBytes}}
std::shared_ptr<train::Trainer> make_trainer(const ModelOptions& options, const std::string& plan) {
  const Json json = Json::parse(plan, "the training plan");
  train::TrainableOptions trainable;
  for (const Json& name : json["dense"].items()) trainable.dense.push_back(name.string());
  for (const Json& low : json["lowRank"].items()) {
    train::LowRank one;
    one.tensor = low["tensor"].string();
    one.rank = low["rank"].integer();
    one.scale = float(low["scale"].number());
    trainable.low_rank.push_back(one);
  }
  trainable.seed = uint64_t(json["seed"].integer());
  trainable.dropout = json["dropout"].number();
  train::OptimizerOptions optimizer;
  const Json& given = json["optimizer"];
  for (const auto& [key, value] : {std::pair<const char*, double*>{"beta1", &optimizer.beta1},
                                   {"beta2", &optimizer.beta2},
                                   {"epsilon", &optimizer.epsilon},
                                   {"weightDecay", &optimizer.weight_decay},
                                   {"clip", &optimizer.clip},
                                   {"anchor", &optimizer.anchor}})
    if (given.has(key)) *value = given[key].number();
  if (given.has("activationBytes")) optimizer.activation_bytes = size_t(given["activationBytes"].number());
  return std::make_shared<train::Trainer>(options, trainable, optimizer);
}

/// load(options) -> Promise<handle>; options.training: a plan, and the model can be trained
Napi::Value load(const Napi::CallbackInfo& info) {
  auto options = std::make_shared<ModelOptions>();
  Failure failure;
  if (!guarded(failure, [&] { *options = read_options(info[0].As<Napi::Object>()); })) throw failure.to_js(info.Env());
  const Napi::Value training = info[0].As<Napi::Object>().Get("training");
  const std::string plan = training.IsString() ? std::string(training.ToString()) : "";
  auto made = std::make_shared<Handle>();
  return Task::run(
      info.Env(),
      [=] {
        if (plan.empty()) {
          made->model = std::make_shared<TextModel>(*options);
        } else {
          made->trainer = make_trainer(*options, plan);
          made->model = std::shared_ptr<TextModel>(made->trainer, &made->trainer->model());
        }
      },
      [=](Napi::Env env) -> Napi::Value {
        auto handle = std::make_unique<Handle>(*made);
        auto external = Napi::External<Handle>::New(env, handle.get(), [](Napi::Env finalizer, Handle* owned) {
          owned->model.reset();
          owned->trainer.reset();
          owned->report(finalizer);
          delete owned;
        });
        handle.release()->report(env);  // had there been no External, as in a worker that was terminated, the model would go with this
        external.TypeTag(&kModelTag);
        return external;
      });
}

struct BatchCopy {
  std::vector<int32_t> ids, offsets;

  explicit BatchCopy(const Napi::CallbackInfo& info) : BatchCopy(info[1], info[2]) {}
  BatchCopy(const Napi::Value& given_ids, const Napi::Value& given_offsets) {
    if (!given_ids.IsTypedArray() || !given_offsets.IsTypedArray())
      throw Failure{"INVALID_INPUT", "expected Int32Array ids and offsets"}.to_js(given_ids.Env());
    auto js_ids = given_ids.As<Napi::Int32Array>(), js_offsets = given_offsets.As<Napi::Int32Array>();
    ids.assign(js_ids.Data(), js_ids.Data() + js_ids.ElementLength());
    offsets.assign(js_offsets.Data(), js_offsets.Data() + js_offsets.ElementLength());
    bool fits = !offsets.empty() && offsets.front() == 0 && offsets.back() == int32_t(ids.size());
    for (size_t i = 1; fits && i < offsets.size(); ++i) fits = offsets[i] >= offsets[i - 1];
    if (!fits) throw Failure{"INVALID_INPUT", "expected offsets that rise from 0 to the number of ids"}.to_js(given_ids.Env());
  }
  TokenBatch view() const { return {ids.data(), offsets.data(), int(offsets.size()) - 1}; }
};

/// A typed array's values, kept alive by the array they come from.
template <class Array, class Key>
Array typed(const Napi::Object& js, Key key, napi_typedarray_type type, const char* expected) {
  const Napi::Value value = js.Get(key);
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != type) throw Failure{"INVALID_INPUT", expected}.to_js(js.Env());
  return value.As<Array>();
}

/// {pictures?: {patches: (Float32Array | {bytes: Uint8Array, mean: number[], deviation: number[]})[], grids: Int32Array [2 * pictures]}, sounds?:
/// {features: Float32Array, frames: Int32Array}} or undefined; patches and features stay the caller's while work runs.
struct MediaOf {
  Media media;

  MediaOf(const Napi::CallbackInfo& info, size_t argument, const TextModel& model) : MediaOf(info[argument], model) {}
  MediaOf(const Napi::Value& value, const TextModel& model) {
    if (!value.IsObject()) return;
    const Napi::Object js = value.As<Napi::Object>();
    if (js.Get("pictures").IsObject()) read_pictures(js.Get("pictures").As<Napi::Object>(), model);
    if (js.Get("sounds").IsObject()) read_sounds(js.Get("sounds").As<Napi::Object>(), model);
    kept_ = std::make_shared<Napi::Reference<Napi::Value>>(Napi::Reference<Napi::Value>::New(js, 1));
  }
  void release() { kept_.reset(); }

 private:
  void read_pictures(const Napi::Object& js, const TextModel& model) {
    const char* expected = "pictures: expected {patches: (Float32Array | {bytes: Uint8Array, mean, deviation})[], grids: Int32Array}";
    if (!js.Get("patches").IsArray()) throw Failure{"INVALID_INPUT", expected}.to_js(js.Env());
    const Napi::Array patches = js.Get("patches").As<Napi::Array>();
    const auto grids = typed<Napi::Int32Array>(js, "grids", napi_int32_array, expected);
    Pictures& pictures = media.pictures;
    for (size_t i = 0; i + 1 < grids.ElementLength(); i += 2) pictures.grids.emplace_back(grids[i], grids[i + 1]);
    const int64_t width = model.vision() ? model.vision()->config().patch_values() : 0;
    int64_t values = 0;
    bool whole = true;
    for (uint32_t i = 0; i < patches.Length(); ++i) {
      Pictures::Piece piece;
      int64_t size = 0;
      if (const Napi::Value given = patches.Get(i); given.IsTypedArray()) {
        const auto numbers = typed<Napi::Float32Array>(patches, i, napi_float32_array, expected);
        piece.values = numbers.Data(), size = int64_t(numbers.ElementLength());
      } else {
        if (!given.IsObject()) throw Failure{"INVALID_INPUT", expected}.to_js(js.Env());
        const Napi::Object colours = given.As<Napi::Object>();
        const auto bytes = typed<Napi::Uint8Array>(colours, "bytes", napi_uint8_array, expected);
        piece.bytes = bytes.Data(), size = int64_t(bytes.ElementLength());
        for (uint32_t c = 0; c < piece.mean.size(); ++c) {
          piece.mean[c] = colours.Get("mean").As<Napi::Array>().Get(c).ToNumber().FloatValue();
          piece.deviation[c] = colours.Get("deviation").As<Napi::Array>().Get(c).ToNumber().FloatValue();
        }
      }
      values += size;
      if (width > 0) piece.rows = size / width, whole &= size % width == 0;
      pictures.patches.push_back(piece);
    }
    if (pictures.grids.empty() || values != pictures.patch_count() * width || !whole)
      throw Failure{"INVALID_INPUT", text("pictures: expected ", pictures.patch_count(), " patches of ", width, " values, got ", values, " values")}
          .to_js(js.Env());
  }
  void read_sounds(const Napi::Object& js, const TextModel& model) {
    const char* expected = "sounds: expected {features: Float32Array, frames: Int32Array}";
    const auto features = typed<Napi::Float32Array>(js, "features", napi_float32_array, expected);
    const auto frames = typed<Napi::Int32Array>(js, "frames", napi_int32_array, expected);
    Sounds& sounds = media.sounds;
    sounds.frames.assign(frames.Data(), frames.Data() + frames.ElementLength());
    sounds.features = features.Data();
    sounds.encoded = js.Get("encoded").ToBoolean();
    const int64_t bins = !model.audio() ? 0 : sounds.encoded ? model.audio()->outputs() : model.audio()->bins();
    const bool positive = std::all_of(sounds.frames.begin(), sounds.frames.end(), [](int32_t n) { return n > 0; });
    if (sounds.frames.empty() || !positive || int64_t(features.ElementLength()) != sounds.frame_count() * bins)
      throw Failure{"INVALID_INPUT",
                    text("sounds: expected ", sounds.frame_count(), " frames of ", bins, " values, got ", features.ElementLength(), " values")}
          .to_js(js.Env());
  }

  std::shared_ptr<Napi::Reference<Napi::Value>> kept_;
};

/// A promise of what `work` makes of `model`, as task.h says.
Napi::Value run_on(Napi::Env env, const TextModel& model, Task::Work work, Task::Finish finish) {
  return (model.waits() ? Task::wait : Task::run)(env, std::move(work), std::move(finish));
}

/// embed(handle, ids, offsets, normalize, dimensions, media?) -> Promise<Float32Array [B * dimensions]>
Napi::Value embed(const Napi::CallbackInfo& info) {
  Handle* handle = handle_of(info);
  std::shared_ptr<TextModel> model = handle->model;
  auto batch = std::make_shared<BatchCopy>(info);
  const bool normalize = info[3].ToBoolean();
  const int64_t dimensions = info[4].ToNumber().Int64Value();
  if (dimensions < 1 || dimensions > model->dimensions())
    throw Failure{"INVALID_OPTION", text("dimensions: expected 1 to ", model->dimensions(), ", got ", dimensions)}.to_js(info.Env());
  auto media = std::make_shared<MediaOf>(info, 5, *model);
  auto vectors = std::make_shared<std::vector<float>>(size_t(batch->view().sequences * dimensions));
  return run_on(
      info.Env(), *model, [=] { model->embed(batch->view(), media->media, normalize, dimensions, vectors->data()); },
      [=](Napi::Env env) -> Napi::Value {
        media->release();
        return shared_array(env, vectors);
      });
}

using States = std::vector<std::vector<float>>;

/// Runs `work`, which keeps `media` alive, and resolves to an array of Float32Array.
Napi::Value resolve_states(Napi::Env env, const TextModel& model, std::shared_ptr<MediaOf> media, std::function<States()> work) {
  auto states = std::make_shared<States>();
  return run_on(
      env, model, [=] { *states = work(); },
      [=](Napi::Env env) -> Napi::Value {
        media->release();
        Napi::Array out = Napi::Array::New(env, states->size());
        for (size_t i = 0; i < states->size(); ++i) out.Set(uint32_t(i), array_of(env, (*states)[i]));
        return out;
      });
}

/// hiddenStates(handle, ids, offsets, media?) -> Promise<Float32Array[]>
Napi::Value hidden_states(const Napi::CallbackInfo& info) {
  std::shared_ptr<TextModel> model = handle_of(info)->model;
  auto batch = std::make_shared<BatchCopy>(info);
  auto media = std::make_shared<MediaOf>(info, 3, *model);
  return resolve_states(info.Env(), *model, media, [=] { return model->hidden_states(batch->view(), media->media); });
}

/// visionStates(handle, media) -> Promise<Float32Array[]>, for tests
Napi::Value vision_states(const Napi::CallbackInfo& info) {
  std::shared_ptr<TextModel> model = handle_of(info)->model;
  auto media = std::make_shared<MediaOf>(info, 1, *model);
  return resolve_states(info.Env(), *model, media, [=] { return model->vision_states(media->media.pictures); });
}

/// audioStates(handle, media) -> Promise<Float32Array[]>, for tests
Napi::Value audio_states(const Napi::CallbackInfo& info) {
  std::shared_ptr<TextModel> model = handle_of(info)->model;
  auto media = std::make_shared<MediaOf>(info, 1, *model);
  return resolve_states(info.Env(), *model, media, [=] { return model->audio_states(media->media.sounds); });
}

/// audioTokens(handle, frames: Int32Array) -> Int32Array
Napi::Value audio_tokens(const Napi::CallbackInfo& info) {
  const AudioEncoder* audio = handle_of(info)->model->audio();
  if (!audio) throw Failure{"INVALID_INPUT", "expected a model that takes sound"}.to_js(info.Env());
  const Napi::Int32Array frames = info[1].As<Napi::Int32Array>();
  Napi::Int32Array out = Napi::Int32Array::New(info.Env(), frames.ElementLength());
  for (size_t i = 0; i < frames.ElementLength(); ++i) out[i] = int32_t(audio->tokens(frames[i]));
  return out;
}

/// encodeSounds(handle, media) -> Promise<Float32Array>
Napi::Value encode_sounds(const Napi::CallbackInfo& info) {
  std::shared_ptr<TextModel> model = handle_of(info)->model;
  auto media = std::make_shared<MediaOf>(info, 1, *model);
  auto out = std::make_shared<std::vector<float>>();
  return run_on(
      info.Env(), *model, [=] { *out = model->encode(media->media.sounds); },
      [=](Napi::Env env) -> Napi::Value {
        media->release();
        return shared_array(env, out);
      });
}

// ---- training

std::shared_ptr<train::Trainer> trainer_of(const Napi::CallbackInfo& info) {
  Handle* handle = handle_of(info);
  if (!handle->trainer) throw Failure{"INVALID_INPUT", "expected a model that was loaded for training"}.to_js(info.Env());
  return handle->trainer;
}

std::vector<int32_t> whole_numbers(const Json& list) {
  std::vector<int32_t> out;
  for (const Json& value : list.items()) out.push_back(int32_t(value.integer()));
  return out;
}

/// {learningRate, weight, update, matryoshka: {dimensions, weights}, contrastive: {queries, documents, positives, temperature,
/// bothDirections, margin} | graded: {left, right, grades, scale} | distillation: {rows, relations}}
train::StepOptions read_step(const std::string& text) {
  const Json json = Json::parse(text, "the step");
  train::StepOptions step;
  step.learning_rate = json["learningRate"].number();
  step.weight = json["weight"].number();
  step.chunk_tokens = json["chunkTokens"].integer();
  step.update = json["update"].boolean();
  for (const Json& value : json["matryoshka"]["dimensions"].items()) step.matryoshka.dimensions.push_back(value.integer());
  for (const Json& value : json["matryoshka"]["weights"].items()) step.matryoshka.weights.push_back(value.number());
  if (const Json& graded = json["graded"]; graded.is_object()) {
    step.loss = train::Loss::graded;
    step.grades.left = whole_numbers(graded["left"]);
    step.grades.right = whole_numbers(graded["right"]);
    for (const Json& value : graded["grades"].items()) step.grades.grades.push_back(value.number());
    step.grades.scale = graded["scale"].number();
    return step;
  }
  if (const Json& distillation = json["distillation"]; distillation.is_object()) {
    step.loss = train::Loss::distillation;
    step.distillation.rows = whole_numbers(distillation["rows"]);
    step.distillation.relations = distillation["relations"].number();
    return step;
  }
  const Json& pairs = json["contrastive"];
  step.contrastive.queries = whole_numbers(pairs["queries"]);
  step.contrastive.documents = whole_numbers(pairs["documents"]);
  for (const Json& own : pairs["positives"].items()) step.contrastive.positives.push_back(whole_numbers(own));
  step.contrastive.temperature = pairs["temperature"].number();
  step.contrastive.both_directions = pairs["bothDirections"].boolean();
  step.contrastive.margin = pairs["margin"].number();
  return step;
}

/// trainStep(handle, [{ids, offsets, media}], step as JSON, teacher's vectors?) -> Promise<{loss, gradientNorm}>
Napi::Value train_step(const Napi::CallbackInfo& info) {
  const std::shared_ptr<train::Trainer> trainer = trainer_of(info);
  const Napi::Array list = info[1].As<Napi::Array>();
  auto chunks = std::make_shared<std::vector<train::Chunk>>();
  auto media = std::make_shared<std::vector<MediaOf>>();
  for (uint32_t i = 0; i < list.Length(); ++i) {
    const Napi::Object js = list.Get(i).As<Napi::Object>();
    BatchCopy batch(js.Get("ids"), js.Get("offsets"));
    media->emplace_back(js.Get("media"), trainer->model());
    chunks->push_back({std::move(batch.ids), std::move(batch.offsets), media->back().media});
  }
  const std::string text = info[2].ToString();
  auto teacher = std::make_shared<std::vector<float>>();
  if (info[3].IsTypedArray()) {
    const auto given = info[3].As<Napi::Float32Array>();
    teacher->assign(given.Data(), given.Data() + given.ElementLength());
  }
  auto result = std::make_shared<train::StepResult>();
  return run_on(
      info.Env(), trainer->model(),
      [=] {
        train::StepOptions step = read_step(text);
        if (const auto rows = int64_t(step.distillation.rows.size()); rows > 0) {
          const int64_t cols = int64_t(teacher->size()) / rows;
          step.distillation.teacher = {teacher->data(), rows, cols, cols};
        }
        *result = trainer->step(*chunks, step);
      },
      [=](Napi::Env env) -> Napi::Value {
        for (MediaOf& each : *media) each.release();
        Napi::Object out = Napi::Object::New(env);
        out.Set("loss", result->loss);
        out.Set("gradientNorm", result->gradient_norm);
        return out;
      });
}

/// saveTraining(handle, path, "state" | "tensors") -> Promise
Napi::Value save_training(const Napi::CallbackInfo& info) {
  const std::shared_ptr<train::Trainer> trainer = trainer_of(info);
  const std::string path = info[1].ToString(), what = info[2].ToString();
  return Task::run(
      info.Env(), [=] { what == "state" ? trainer->save_state(path) : trainer->save_tensors(path); },
      [](Napi::Env env) -> Napi::Value { return env.Undefined(); });
}

/// loadTraining(handle, path) -> Promise
Napi::Value load_training(const Napi::CallbackInfo& info) {
  const std::shared_ptr<train::Trainer> trainer = trainer_of(info);
  const std::string path = info[1].ToString();
  return Task::run(
      info.Env(), [=] { trainer->load_state(path); }, [](Napi::Env env) -> Napi::Value { return env.Undefined(); });
}

/// gradients(handle) -> {name: Float32Array}: what a step without update has left; for tests
Napi::Value gradients(const Napi::CallbackInfo& info) {
  Napi::Object out = Napi::Object::New(info.Env());
  for (const auto& parameter : trainer_of(info)->parameters().all()) out.Set(parameter->name, array_of(info.Env(), parameter->gradient));
  return out;
}

/// cancel(handle): a running embed() ends with ABORTED
Napi::Value cancel(const Napi::CallbackInfo& info) {
  handle_of(info)->model->cancel();
  return info.Env().Undefined();
}

/// dispose(handle): frees the weights, once running work is done
Napi::Value dispose(const Napi::CallbackInfo& info) {
  Handle* handle = handle_of(info);
  handle->model.reset();
  handle->trainer.reset();
  handle->report(info.Env());
  return info.Env().Undefined();
}

/// modelInfo(handle) -> object
Napi::Value model_info(const Napi::CallbackInfo& info) {
  const TextModel& model = *handle_of(info)->model;
  Napi::Object out = Napi::Object::New(info.Env());
  out.Set("modelType", model.config().model_type);
  out.Set("hiddenSize", double(model.config().hidden));
  out.Set("layers", double(model.config().layers));
  out.Set("vocabularySize", double(model.config().vocab_size));
  out.Set("maxPositions", double(model.config().max_positions));
  const VisionTower* vision = model.vision();
  out.Set("imageToken", vision ? Napi::Value(Napi::Number::New(info.Env(), vision->config().image_token)) : info.Env().Null());
  out.Set("videoToken", vision ? Napi::Value(Napi::Number::New(info.Env(), vision->config().video_token)) : info.Env().Null());
  const AudioEncoder* audio = model.audio();
  out.Set("audioToken", audio ? Napi::Value(Napi::Number::New(info.Env(), model.audio_token())) : info.Env().Null());
  out.Set("melBins", audio ? Napi::Value(Napi::Number::New(info.Env(), double(audio->bins()))) : info.Env().Null());
  out.Set("audioFeatures", audio ? Napi::Value(Napi::Number::New(info.Env(), double(audio->outputs()))) : info.Env().Null());
  out.Set("dimensions", double(model.dimensions()));
  out.Set("dtype", weight_format_name(model.format()));
  out.Set("checkpointDtype", dtype_name(model.checkpoint_dtype()));
  out.Set("backend", model.backend());
  out.Set("threads", model.threads());
  out.Set("memoryBytes", double(model.memory_bytes()));
  Napi::Array unused = Napi::Array::New(info.Env());
  for (const std::string& name : model.unused_tensors()) unused.Set(unused.Length(), name);
  out.Set("unusedTensors", unused);
  return out;
}

/// similarities(measure, a, b, out: Float32Array, dimensions, threads): out is [a's rows, b's rows]
Napi::Value similarities(const Napi::CallbackInfo& info) {
  const std::string measure = info[0].ToString();
  const int64_t dimensions = info[4].ToNumber().Int64Value();
  const int threads = info[5].ToNumber();
  const auto matrix = [&](int i, int64_t cols) -> Matrix {
    auto values = info[i].As<Napi::Float32Array>();
    return {values.Data(), cols > 0 ? int64_t(values.ElementLength()) / cols : 0, cols, cols};
  };
  const Matrix a = matrix(1, dimensions), b = matrix(2, dimensions), out = matrix(3, b.rows);
  Failure failure;
  const bool ok = guarded(failure, [&] {
    if (out.rows != a.rows) fail("INTERNAL", "similarities: expected room for ", a.rows, " rows, got ", out.rows);
    Context context(cpu_backend(), threads > 0 ? threads : ThreadPool::default_threads());
    conan::similarities(context, similarity_named(measure), a, b, out);
  });
  if (!ok) throw failure.to_js(info.Env());
  return info.Env().Undefined();
}

/// inspect(directory) -> JSON text
Napi::Value inspect(const Napi::CallbackInfo& info) {
  std::string json;
  Failure failure;
  if (!guarded(failure, [&] { json = inspect_directory(info[0].ToString()); })) throw failure.to_js(info.Env());
  return Napi::String::New(info.Env(), json);
}

/// cpu() -> what this machine's CPU backend uses and why
Napi::Value cpu(const Napi::CallbackInfo& info) {
  Napi::Object out = Napi::Object::New(info.Env());
  Failure failure;
  const bool ok = guarded(failure, [&] {
    const CpuReport report = cpu_report();
    out.Set("isa", report.isa);
    out.Set("bf16Kernel", report.bf16_kernel);
    out.Set("int8Kernel", report.int8_kernel);
    out.Set("f32Gflops", report.f32_gflops);
    out.Set("bf16DotGflops", report.bf16_dot_gflops);
    out.Set("threads", report.threads);
  });
  if (!ok) throw failure.to_js(info.Env());
  return out;
}

/// gpus() -> [{device, name, memory, capability}], or one entry without a device whose name says why there is none
Napi::Value gpus(const Napi::CallbackInfo& info) {
  std::vector<GpuReport> reports;
  Failure failure;
  if (!guarded(failure, [&] { reports = gpu_reports(); })) throw failure.to_js(info.Env());
  Napi::Array out = Napi::Array::New(info.Env());
  for (const GpuReport& report : reports) {
    Napi::Object gpu = Napi::Object::New(info.Env());
    gpu.Set("device", report.device);
    gpu.Set("name", report.name);
    gpu.Set("memory", double(report.memory));
    gpu.Set("capability", report.capability / 10.0);
    out.Set(out.Length(), gpu);
  }
  return out;
}

// ---- media

/// patches(frames: Uint8Array[], width, height, {toWidth, toHeight, patch, temporalPatch, merge}) -> Promise<Uint8Array>; the frames must not change
/// while it runs
Napi::Value patches(const Napi::CallbackInfo& info) {
  Napi::Array list = info[0].As<Napi::Array>();
  const int64_t width = info[1].ToNumber().Int64Value(), height = info[2].ToNumber().Int64Value();
  Napi::Object js = info[3].As<Napi::Object>();
  auto number = [&](const char* key) { return js.Get(key).ToNumber().Int64Value(); };
  const int64_t to_width = number("toWidth"), to_height = number("toHeight");
  media::PatchLayout layout;
  layout.patch = number("patch"), layout.temporal_patch = number("temporalPatch"), layout.merge = number("merge");
  auto frames = std::make_shared<std::vector<const uint8_t*>>();
  for (uint32_t i = 0; i < list.Length(); ++i) {
    Napi::Value value = list.Get(i);
    if (!value.IsTypedArray() || int64_t(value.As<Napi::TypedArray>().ByteLength()) != width * height * 3)
      throw Failure{"INVALID_INPUT", text("frame ", i, ": expected ", width, " x ", height, " RGB bytes")}.to_js(info.Env());
    frames->push_back(value.As<Napi::Uint8Array>().Data());
  }
  auto kept = std::make_shared<Napi::Reference<Napi::Value>>(Napi::Reference<Napi::Value>::New(list, 1));
  auto out = std::make_shared<std::vector<uint8_t>>();
  return Task::run(
      info.Env(),
      [=] {
        out->resize(size_t(to_width * to_height * 3 * layout.temporal_patch));
        media::image_patches(*frames, width, height, to_width, to_height, layout, out->data());
      },
      [=](Napi::Env env) -> Napi::Value {
        kept->Reset();
        return shared_array(env, out);
      });
}

/// resample(samples: Float32Array, from, to) -> Promise<Float32Array>; the samples must not change while it runs
Napi::Value resample(const Napi::CallbackInfo& info) {
  const Napi::Float32Array samples = info[0].As<Napi::Float32Array>();
  const int64_t from = info[1].ToNumber().Int64Value(), to = info[2].ToNumber().Int64Value();
  auto kept = std::make_shared<Napi::Reference<Napi::Value>>(Napi::Reference<Napi::Value>::New(samples, 1));
  auto out = std::make_shared<std::vector<float>>();
  const float* data = samples.Data();
  const auto n = int64_t(samples.ElementLength());
  return Task::run(
      info.Env(), [=] { *out = media::resample(data, n, from, to); }, [=](Napi::Env env) { return kept->Reset(), shared_array(env, out); });
}

/// logMel(samples: Float32Array, {rate, window, hop, bins}) -> Promise<Float32Array [frames, bins]>; the samples must not change
Napi::Value log_mel(const Napi::CallbackInfo& info) {
  const Napi::Float32Array samples = info[0].As<Napi::Float32Array>();
  const Napi::Object js = info[1].As<Napi::Object>();
  auto number = [&](const char* key) { return js.Get(key).ToNumber().Int64Value(); };
  const media::MelLayout layout{number("rate"), number("window"), number("hop"), number("bins")};
  auto kept = std::make_shared<Napi::Reference<Napi::Value>>(Napi::Reference<Napi::Value>::New(samples, 1));
  const float* data = samples.Data();
  const auto n = int64_t(samples.ElementLength());
  auto out = std::make_shared<std::vector<float>>(size_t(media::mel_frames(n, layout) * layout.bins));
  return Task::run(
      info.Env(), [=] { media::log_mel(data, n, layout, out->data()); }, [=](Napi::Env env) { return kept->Reset(), shared_array(env, out); });
}

// ---- fusing

constexpr napi_type_tag kTokenTag = {0x1d8a90b35f6e4c27, 0xb06cf2a9e4d71358};
using Token = std::shared_ptr<std::atomic<bool>>;

/// cancelToken() -> something to stop long work with
Napi::Value cancel_token(const Napi::CallbackInfo& info) {
  auto token = std::make_unique<Token>(std::make_shared<std::atomic<bool>>(false));
  auto external = Napi::External<Token>::New(info.Env(), token.get(), [](Napi::Env, Token* owned) { delete owned; });
  token.release();
  external.TypeTag(&kTokenTag);
  return external;
}

Token token_of(const Napi::CallbackInfo& info, const Napi::Value& value) {
  if (!value.IsExternal() || !value.As<Napi::External<Token>>().CheckTypeTag(&kTokenTag))
    throw Failure{"INVALID_INPUT", "expected a cancel token"}.to_js(info.Env());
  return *value.As<Napi::External<Token>>().Data();
}

/// stop(token)
Napi::Value stop(const Napi::CallbackInfo& info) {
  token_of(info, info[0])->store(true);
  return info.Env().Undefined();
}

/// checkpoint(directory) -> JSON [{name, dtype, shape, file}], in the order of the files
Napi::Value checkpoint(const Napi::CallbackInfo& info) {
  std::string json = "[";
  Failure failure;
  const bool ok = guarded(failure, [&] {
    const Checkpoint read(info[0].ToString());
    struct Row {
      size_t file;
      const void* data;
      std::string text;
    };
    std::vector<Row> rows;
    for (const std::string& name : read.names()) {
      const TensorView& view = *read.find(name);
      size_t file = 0;
      for (size_t i = 0; i < read.files().size(); ++i)
        if (auto found = read.files()[i]->tensors().find(name); found != read.files()[i]->tensors().end() && found->second.data == view.data)
          file = i;
      rows.push_back({file, view.data,
                      text("{\"name\":", json_quote(name), ",\"dtype\":\"", dtype_name(view.dtype), "\",\"shape\":", shape_text(view.shape),
                           ",\"file\":", json_quote(read.files()[file]->path()), "}")});
    }
    std::stable_sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) { return a.file != b.file ? a.file < b.file : a.data < b.data; });
    for (const Row& row : rows) json += (json.size() > 1 ? ",\n" : "\n") + row.text;
  });
  if (!ok) throw failure.to_js(info.Env());
  return Napi::String::New(info.Env(), json + "]");
}

using Progress = std::function<void(int64_t, int64_t)>;

/// work(plan, token, progress(done, total)) -> Promise<JSON text>
Napi::Value run_plan(const Napi::CallbackInfo& info, std::string (*work)(const std::string&, const std::atomic<bool>&, const Progress&)) {
  const auto plan = std::make_shared<std::string>(info[0].ToString());
  const Token token = token_of(info, info[1]);
  auto report = std::make_shared<std::string>();
  auto progress = Napi::ThreadSafeFunction::New(info.Env(), info[2].As<Napi::Function>(), "progress", 0, 1);
  return Task::run(
      info.Env(),
      [=]() mutable {
        struct Release {
          Napi::ThreadSafeFunction& function;
          ~Release() { function.Release(); }
        } release{progress};
        *report = work(*plan, *token, [&](int64_t done, int64_t total) {
          progress.NonBlockingCall([done, total](Napi::Env env, Napi::Function function) {
            function.Call({Napi::Number::New(env, double(done)), Napi::Number::New(env, double(total))});
          });
        });
      },
      [=](Napi::Env env) -> Napi::Value { return Napi::String::New(env, *report); });
}

Napi::Value fuse(const Napi::CallbackInfo& info) { return run_plan(info, merge::fuse); }
Napi::Value geometry(const Napi::CallbackInfo& info) { return run_plan(info, merge::geometry); }
Napi::Value extract_lora(const Napi::CallbackInfo& info) { return run_plan(info, merge::extract_lora); }

Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  const std::pair<const char*, Napi::Value (*)(const Napi::CallbackInfo&)> functions[] = {{"load", load},
                                                                                          {"embed", embed},
                                                                                          {"hiddenStates", hidden_states},
                                                                                          {"visionStates", vision_states},
                                                                                          {"audioStates", audio_states},
                                                                                          {"encodeSounds", encode_sounds},
                                                                                          {"trainStep", train_step},
                                                                                          {"saveTraining", save_training},
                                                                                          {"loadTraining", load_training},
                                                                                          {"gradients", gradients},
                                                                                          {"audioTokens", audio_tokens},
                                                                                          {"resample", resample},
                                                                                          {"logMel", log_mel},
                                                                                          {"patches", patches},
                                                                                          {"cancel", cancel},
                                                                                          {"dispose", dispose},
                                                                                          {"modelInfo", model_info},
                                                                                          {"inspect", inspect},
                                                                                          {"similarities", similarities},
                                                                                          {"cpu", cpu},
                                                                                          {"gpus", gpus},
                                                                                          {"cancelToken", cancel_token},
                                                                                          {"stop", stop},
                                                                                          {"checkpoint", checkpoint},
                                                                                          {"fuse", fuse},
                                                                                          {"geometry", geometry},
                                                                                          {"extractLora", extract_lora}};
  for (const auto& [name, function] : functions) exports.Set(name, Napi::Function::New(env, function, name));
  return exports;
}

}  // namespace

NODE_API_MODULE(conan_embedding, initialize)
