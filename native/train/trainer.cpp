#include "train/trainer.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/safetensors.h"

namespace conan::train {

Trainer::Trainer(const ModelOptions& model, const TrainableOptions& trainable, const OptimizerOptions& optimizer)
    : parameters_(trainable), optimizer_(optimizer) {
  if (!model.adapters.empty()) fail("INVALID_OPTION", "training: expected a model without adapters (merge them first), got ", model.adapters.size());
  model_ = std::make_unique<TextModel>(model, &parameters_);
  parameters_.require_found();
}

StepResult Trainer::step(const std::vector<Chunk>& chunks, const StepOptions& options) {
  std::lock_guard<std::mutex> lock(model_->running());
  Context& context = model_->context();
  Arena::Scope scope(context.scratch);
  int64_t rows = 0;
  for (const Chunk& chunk : chunks) rows += chunk.view().sequences;
  const Matrix vectors = context.scratch.matrix(rows, model_->dimensions()), gradient = context.scratch.matrix(rows, model_->dimensions());

  // The loss looks at all vectors; with several chunks each goes through the model twice, and only one at a time is remembered.
  const bool whole = chunks.size() == 1;
  TextModel::TrainingPass only = begin_pass(whole);
  const auto forward = [&](const Chunk& chunk, TextModel::TrainingPass& pass, int64_t first) {
    const Matrix made = model_->forward(pass, chunk.view(), chunk.media, parameters_);
    for (int64_t b = 0; b < made.rows; ++b) std::copy_n(made.row(b), made.cols, vectors.row(first + b));
  };
  int64_t first = 0;
  for (const Chunk& chunk : chunks) {
    if (whole) {
      forward(chunk, only, 0);
      break;
    }
    Arena::Scope own(context.scratch);
    TextModel::TrainingPass pass = begin_pass(false);
    forward(chunk, pass, first);
    end_pass(pass);
    first += chunk.view().sequences;
  }
  StepResult result;
  result.loss = options.graded ? graded_loss(vectors, options.grades, options.matryoshka, gradient)
                               : contrastive_loss(vectors, options.contrastive, options.matryoshka, gradient);
  if (!std::isfinite(result.loss)) fail("LOSS_NOT_FINITE", "step ", steps_ + 1, ": the loss is not a number");
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < gradient.cols; ++c) gradient.row(i)[c] *= float(options.weight);
  first = 0;
  for (const Chunk& chunk : chunks) {
    const int64_t count = chunk.view().sequences;
    if (whole) {
      model_->backward(only, gradient, parameters_);
      end_pass(only);
      break;
    }
    Arena::Scope own(context.scratch);
    TextModel::TrainingPass pass = begin_pass(true);
    model_->forward(pass, chunk.view(), chunk.media, parameters_);
    model_->backward(pass, gradient.slice(first, count), parameters_);
    end_pass(pass);
    first += count;
  }
  parameters_.collect();
  double squares = 0;
  for (const auto& parameter : parameters_.all()) {
    double own = 0;
    for (const float g : parameter->gradient) own += double(g) * g;
    if (!std::isfinite(own)) {
      const std::string name = parameter->name;
      parameters_.clear_gradients();
      fail("LOSS_NOT_FINITE", "step ", steps_ + 1, ": the gradient of \"", name, "\" holds a NaN or an infinity");
    }
    squares += own;
  }
  result.gradient_norm = std::sqrt(squares);
  if (options.update) update(options, optimizer_.clip > 0 && result.gradient_norm > optimizer_.clip ? optimizer_.clip / result.gradient_norm : 1);
  return result;
}

/// A pass with the memory of the one before.
TextModel::TrainingPass Trainer::begin_pass(bool keep) {
  TextModel::TrainingPass pass;
  pass.tape.memory = std::move(tapes_[0].memory);
  pass.heard_tape.memory = std::move(tapes_[1].memory);
  pass.seen_tape.memory = std::move(tapes_[2].memory);
  pass.tape.budget = keep ? optimizer_.activation_bytes : 0;
  return pass;
}

void Trainer::end_pass(TextModel::TrainingPass& pass) {
  tapes_[0].memory = std::move(pass.tape.memory);
  tapes_[1].memory = std::move(pass.heard_tape.memory);
  tapes_[2].memory = std::move(pass.seen_tape.memory);
}

/// AdamW; `factor` scales the gradients (clipping).
void Trainer::update(const StepOptions& options, double factor) {
  ++steps_;
  const double lr = options.learning_rate, b1 = optimizer_.beta1, b2 = optimizer_.beta2;
  const double correct1 = 1 - std::pow(b1, double(steps_)), correct2 = std::sqrt(1 - std::pow(b2, double(steps_)));
  for (const auto& parameter : parameters_.all()) {
    const float decay = float(1 - lr * (parameter->decays ? optimizer_.weight_decay : 0)), step = float(lr / correct1);
    for (size_t i = 0; i < parameter->value.size(); ++i) {
      const float g = parameter->gradient[i] * float(factor);
      float &m = parameter->first[i], &v = parameter->second[i];
      m = float(b1) * m + float(1 - b1) * g;
      v = float(b2) * v + float(1 - b2) * g * g;
      parameter->value[i] = parameter->value[i] * decay - step * m / (std::sqrt(v) / float(correct2) + float(optimizer_.epsilon));
    }
  }
  parameters_.clear_gradients();
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
  const std::vector<float>* values;
};

void write_all(const std::string& path, const std::vector<Named>& tensors, const std::map<std::string, std::string>& metadata) {
  std::vector<TensorHeader> headers;
  for (const Named& tensor : tensors) headers.push_back({tensor.name, Dtype::f32, tensor.parameter->shape});
  SafetensorsWriter writer(path, headers, metadata);
  for (size_t i = 0; i < tensors.size(); ++i) writer.write(i, 0, tensors[i].values->data(), tensors[i].values->size() * sizeof(float));
  writer.close();
}

}  // namespace

void Trainer::save_state(const std::string& path) const {
  std::vector<Named> tensors;
  for (const auto& p : parameters_.all()) {
    tensors.push_back({"value." + p->name, p.get(), &p->value});
    tensors.push_back({"gradient." + p->name, p.get(), &p->gradient});
    tensors.push_back({"first." + p->name, p.get(), &p->first});
    tensors.push_back({"second." + p->name, p.get(), &p->second});
  }
  write_all(path, tensors, {{"steps", std::to_string(steps_)}});
}

void Trainer::load_state(const std::string& path) {
  std::lock_guard<std::mutex> lock(model_->running());
  const SafetensorsFile file(path);
  for (const auto& p : parameters_.all())
    for (const auto& [kind, values] : {std::pair{"value.", &p->value}, {"gradient.", &p->gradient}, {"first.", &p->first}, {"second.", &p->second}}) {
      const auto found = file.tensors().find(kind + p->name);
      if (found == file.tensors().end() || found->second.shape != p->shape)
        fail("FILE_CORRUPT", path, ": expected a tensor \"", kind, p->name, "\" ", shape_text(p->shape), ": is this another run's state?");
      read_f32(found->second, 0, found->second.size(), values->data());
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
    tensors.push_back({(low_rank ? "base_model.model." : "") + p->name, p.get(), &p->value});
  }
  write_all(path, tensors, {{"format", "pt"}});
}

}  // namespace conan::train
