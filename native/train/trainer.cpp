#include "train/trainer.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/safetensors.h"
#include "ops/backend.h"

namespace conan::train {

namespace {

/// Rows in memory of the host.
struct HostRows {
  std::vector<float> values;
  Matrix rows;
  HostRows(int64_t count, int64_t cols) : values(size_t(count * cols)), rows{values.data(), count, cols, cols} {}
};

}  // namespace

Trainer::Trainer(const ModelOptions& model, const TrainableOptions& trainable, const OptimizerOptions& optimizer)
    : parameters_(trainable, backend(model.device)), optimizer_(optimizer) {
  if (!model.adapters.empty()) fail("INVALID_OPTION", "training: expected a model without adapters (merge them first), got ", model.adapters.size());
  model_ = std::make_unique<TextModel>(model, &parameters_);
  parameters_.require_found();
  if (optimizer_.activation_bytes) return;
  Context& context = model_->context();
  optimizer_.activation_bytes = context.ops.free_bytes ? context.ops.free_bytes(context) / 2 : size_t(1) << 30;
}

StepResult Trainer::step(const std::vector<Chunk>& chunks, const StepOptions& options) {
  std::lock_guard<std::mutex> lock(model_->running());
  Context& context = model_->context();
  Arena::Scope scope(context.scratch);
  parameters_.drop(context, steps_ + 1);
  int64_t rows = 0;
  for (const Chunk& chunk : chunks) rows += chunk.view().sequences;
  const Matrix vectors = context.scratch.matrix(rows, model_->dimensions()), gradient = context.scratch.matrix(rows, model_->dimensions());

  // The loss looks at all vectors, but not all of them depend on what trains.
  struct Part {
    const Chunk* chunk;
    int64_t first;
    bool learns;
    TextModel::TrainingPass pass;
  };
  std::vector<Part> parts;
  int64_t row = 0, learning = 0, tokens = 0;
  for (const Chunk& chunk : chunks) {
    const bool learns = model_->trains(chunk.media, parameters_);
    parts.push_back({&chunk, row, learns, {}});
    row += chunk.view().sequences;
    if (learns) ++learning, tokens += chunk.view().tokens();
  }
  const bool remembered = learning == 1 || tokens <= options.chunk_tokens;
  const auto rows_of = [&](const Part& part) { return vectors.slice(part.first, part.chunk->view().sequences); };
  const auto forward = [&](Part& part, size_t budget) {
    part.pass = begin_pass(budget);
    copy(context, model_->forward(part.pass, part.chunk->view(), part.chunk->media, parameters_), rows_of(part));
  };
  std::vector<Coming> coming;
  for (Part& part : parts) {
    if (part.learns && remembered) continue;
    Arena::Scope own(context.scratch);
    if (part.learns) copy(context, model_->infer(part.chunk->view(), part.chunk->media), rows_of(part));
    else infer(*part.chunk, rows_of(part), coming);
  }
  size_t budget = *optimizer_.activation_bytes;
  for (Part& part : parts) {
    if (!part.learns || !remembered) continue;
    forward(part, budget);
    budget = part.pass.tape.budget;
  }
  StepResult result;
  result.loss = loss_of(vectors, options, gradient);
  remember(coming);
  if (!std::isfinite(result.loss)) fail("LOSS_NOT_FINITE", "step ", steps_ + 1, ": the loss is not a number");
  for (Part& part : parts) {
    if (!part.learns) continue;
    Arena::Scope own(context.scratch);
    if (!remembered) forward(part, *optimizer_.activation_bytes);
    model_->backward(part.pass, gradient.slice(part.first, part.chunk->view().sequences), parameters_);
    end_pass(part.pass);
  }
  parameters_.collect(context);
  if (optimizer_.anchor > 0 && options.update) parameters_.pull_back(context, optimizer_.anchor);
  SquaresArgs all;
  for (const Block& block : parameters_.blocks()) all.values.emplace_back(block.gradient.data(), size_t(block.used));
  double squares = 0;
  all.sum = &squares;
  context.ops.squares(context, all);
  finish(context);
  if (!std::isfinite(squares)) {
    const auto broken = std::find_if(parameters_.all().begin(), parameters_.all().end(), [](const auto& parameter) {
      return std::any_of(parameter->gradient.begin(), parameter->gradient.end(), [](float x) { return !std::isfinite(x); });
    });
    const std::string name = broken == parameters_.all().end() ? "" : text(" of \"", (*broken)->name, "\"");
    parameters_.clear_gradients();
    fail("LOSS_NOT_FINITE", "step ", steps_ + 1, ": the gradient", name, " holds a NaN or an infinity");
  }
  result.gradient_norm = std::sqrt(squares);
  if (options.update) update(options, optimizer_.clip > 0 && result.gradient_norm > optimizer_.clip ? optimizer_.clip / result.gradient_norm : 1);
  return result;
}

/// Vectors of a chunk that does not learn: texts are computed the first time they come. Nothing is waited for, so that a device has what comes
/// next beside them: those that are new are on their way when it returns, for remember().
void Trainer::infer(const Chunk& chunk, const Matrix& out, std::vector<Coming>& coming) {
  const TokenBatch batch = chunk.view();
  Context& context = model_->context();
  if (!chunk.media.sounds.frames.empty() || !chunk.media.pictures.grids.empty()) return copy(context, model_->infer(batch, chunk.media), out);
  Chunk fresh;
  fresh.offsets.push_back(0);
  std::vector<int32_t> old_places, fresh_places;
  std::vector<float> old;
  std::vector<std::string> keys;
  for (int b = 0; b < batch.sequences; ++b) {
    const int32_t *const first = batch.ids + batch.offsets[b], *const end = batch.ids + batch.offsets[b + 1];
    std::string key(reinterpret_cast<const char*>(first), size_t(end - first) * sizeof(int32_t));
    if (const auto found = known_.find(key); found != known_.end()) {
      old_places.push_back(b);
      old.insert(old.end(), found->second.begin(), found->second.end());
      continue;
    }
    fresh_places.push_back(b), keys.push_back(std::move(key));
    fresh.ids.insert(fresh.ids.end(), first, end);
    fresh.offsets.push_back(int32_t(fresh.ids.size()));
  }
  if (!old.empty()) context.ops.scatter(context, {{old.data(), int64_t(old_places.size()), out.cols, out.cols}, out, old_places.data()});
  if (keys.empty()) return;
  const Matrix made = model_->infer(fresh.view(), fresh.media);
  context.ops.scatter(context, {made, out, fresh_places.data()});
  coming.push_back({std::move(keys), bring(context, made)});
}

void Trainer::remember(const std::vector<Coming>& coming) {
  constexpr size_t kMostBytes = size_t(256) << 20;
  const auto cols = size_t(model_->dimensions());
  for (const auto& [keys, arrival] : coming) {
    const float* row = arrival->wait();
    for (const std::string& key : keys) {
      if (known_.size() * cols * sizeof(float) < kMostBytes) known_[key].assign(row, row + cols);
      row += cols;
    }
  }
}

/// And its gradient, times the step's weight.
double Trainer::loss_of(const Matrix& vectors, const StepOptions& options, const Matrix& gradient) {
  Context& context = model_->context();
  if (options.loss == Loss::contrastive) {
    try {
      return contrastive_loss(context, vectors, options.contrastive, options.matryoshka, options.weight, gradient, packed_);
    } catch (const Error& error) {
      if (error.code() != std::string("WEIGHT_NOT_FINITE")) throw;
      return NAN;  // vectors
    }
  }
  HostRows own(vectors.rows, vectors.cols), slopes(vectors.rows, vectors.cols);
  copy(context, vectors, own.rows);
  finish(context);
  const double loss = options.loss == Loss::graded ? graded_loss(own.rows, options.grades, options.matryoshka, slopes.rows)
                                                   : distillation_loss(own.rows, options.distillation, options.matryoshka, slopes.rows);
  for (float& slope : slopes.values) slope *= float(options.weight);
  copy(context, slopes.rows, gradient);
  return loss;
}

/// A pass with the memory of one before.
TextModel::TrainingPass Trainer::begin_pass(size_t budget) {
  TextModel::TrainingPass pass;
  Tape* const tapes[] = {&pass.tape, &pass.heard_tape, &pass.seen_tape};
  for (size_t i = 0; i < 3; ++i) {
    if (memory_[i].empty()) continue;
    tapes[i]->memory = std::move(memory_[i].back());
    memory_[i].pop_back();
  }
  pass.tape.budget = budget;
  return pass;
}

void Trainer::end_pass(TextModel::TrainingPass& pass) {
  Tape* const tapes[] = {&pass.tape, &pass.heard_tape, &pass.seen_tape};
  for (size_t i = 0; i < 3; ++i)
    if (tapes[i]->memory) memory_[i].push_back(std::move(tapes[i]->memory));
}

/// AdamW; `factor` scales the gradients (clipping).
void Trainer::update(const StepOptions& options, double factor) {
  ++steps_;
  const double lr = options.learning_rate, b1 = optimizer_.beta1, b2 = optimizer_.beta2;
  const double correct1 = 1 - std::pow(b1, double(steps_)), correct2 = std::sqrt(1 - std::pow(b2, double(steps_)));
  for (Block& block : parameters_.blocks()) {
    AdamWArgs args{block.value.data(), block.gradient.data(), block.first.data(), block.second.data(), block.used};
    args.scale = float(factor);
    args.beta1 = float(b1), args.beta2 = float(b2);
    args.decay = float(1 - lr * (block.decays ? optimizer_.weight_decay : 0));
    args.rate = float(lr / correct1), args.correction = float(correct2), args.epsilon = float(optimizer_.epsilon);
    model_->context().ops.adamw(model_->context(), args);
  }
  try {
    parameters_.refresh(model_->context());
  } catch (const Error& error) {
    if (error.code() != std::string("WEIGHT_NOT_FINITE")) throw;
    fail("LOSS_NOT_FINITE", "step ", steps_, ": ", error.what(), " after it (a smaller learning rate, or clipping?)");
  }
  model_->refresh();
}

namespace {

struct Named {
  std::string name;
  const Parameter* parameter;
  std::span<const float> values;
};

void write_all(const std::string& path, const std::vector<Named>& tensors, const std::map<std::string, std::string>& metadata) {
  std::vector<TensorHeader> headers;
  for (const Named& tensor : tensors) headers.push_back({tensor.name, Dtype::f32, tensor.parameter->shape});
  SafetensorsWriter writer(path, headers, metadata);
  for (size_t i = 0; i < tensors.size(); ++i) writer.write(i, 0, tensors[i].values.data(), tensors[i].values.size_bytes());
  writer.close();
}

}  // namespace

void Trainer::save_state(const std::string& path) const {
  std::vector<Named> tensors;
  for (const auto& p : parameters_.all()) {
    tensors.push_back({"value." + p->name, p.get(), p->value});
    tensors.push_back({"gradient." + p->name, p.get(), p->gradient});
    tensors.push_back({"first." + p->name, p.get(), p->first});
    tensors.push_back({"second." + p->name, p.get(), p->second});
  }
  write_all(path, tensors, {{"steps", std::to_string(steps_)}});
}

void Trainer::load_state(const std::string& path) {
  std::lock_guard<std::mutex> lock(model_->running());
  const SafetensorsFile file(path);
  for (const auto& p : parameters_.all())
    for (const auto& [kind, values] : {std::pair{"value.", p->value}, {"gradient.", p->gradient}, {"first.", p->first}, {"second.", p->second}}) {
      const auto found = file.tensors().find(kind + p->name);
      if (found == file.tensors().end() || found->second.shape != p->shape)
        fail("FILE_CORRUPT", path, ": expected a tensor \"", kind, p->name, "\" ", shape_text(p->shape), ": is this another run's state?");
      read_f32(found->second, 0, found->second.size(), values.data());
    }
  const auto steps = file.metadata().find("steps");
  if (steps == file.metadata().end()) fail("FILE_CORRUPT", path, ": expected the number of steps in its metadata, found none");
  steps_ = std::stoll(steps->second);
  parameters_.refresh(model_->context());
  model_->refresh();
}

void Trainer::save_tensors(const std::string& path) const {
  std::vector<Named> tensors;
  for (const auto& p : parameters_.all()) {
    const bool low_rank = std::any_of(parameters_.low_rank().begin(), parameters_.low_rank().end(),
                                      [&](const LowRank& low) { return low.a == p.get() || low.b == p.get(); });
    tensors.push_back({(low_rank ? "base_model.model." : "") + p->name, p.get(), p->value});
  }
  write_all(path, tensors, {{"format", "pt"}});
}

}  // namespace conan::train
