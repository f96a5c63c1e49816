// A whole model's forward pass with what is needed to go back, and the way back: dense layers, pooling, transformer, projector.
#include "base/error.h"
#include "models/text_model.h"

namespace conan {

bool TextModel::trains_in_front(const Media& media, const Gradients& gradients) const {
  const bool sounds = !media.sounds.frames.empty(), pictures = !media.pictures.grids.empty();
  return (sounds && projector_ && (projector_->trains(gradients) || (audio_->trains(gradients) && !media.sounds.encoded))) ||
         (pictures && vision_ && vision_->trains(gradients));
}

bool TextModel::trains(const Media& media, const Gradients& gradients) const {
  for (const Dense& dense : dense_)
    if (gradients.wants(*dense.weight) || gradients.wants(dense.bias)) return true;
  return transformer_->trains(gradients) || trains_in_front(media, gradients);
}

Matrix TextModel::forward(TrainingPass& pass, const TokenBatch& batch, const Media& media, const Gradients& gradients) {
  cancelled_ = false;
  Context& context = *context_;
  pass.batch = batch;
  pass.gradients = &gradients;
  pass.media = &media;
  pass.input = input_of(batch, media, &pass);
  const int64_t lowest = trains_in_front(media, gradients) ? 0 : transformer_->lowest_trained(gradients);
  const Transformer::Observer record = transformer_->record(context, pass.tape, lowest, gradients);
  const bool pooled = transformer_->pools_itself(pooling_);
  pass.final = transformer_->forward(context, pass.input, pooled ? std::optional(pooling_) : std::nullopt, record, &pass.tape);
  Matrix x = pass.final;
  if (!pooled) {
    x = context.scratch.matrix(batch.sequences, config().hidden);
    context.ops.pool(context, {pass.final, x, batch.offsets, pooling_});
  }
  for (const Dense& dense : dense_) {
    pass.dense.push_back(x);
    x = apply(dense, x);
  }
  return x;
}

void TextModel::backward(TrainingPass& pass, const Matrix& dy, Gradients& gradients) {
  Context& context = *context_;
  Arena::Scope scope(context.scratch);
  Matrix d = dy;
  for (size_t i = dense_.size(); i-- > 0;) {
    const Dense& dense = dense_[i];
    LinearArgs args;
    args.x = pass.dense[i];
    args.weight = dense.weight.get();
    args.bias = dense.bias.data();
    args.y = context.scratch.matrix(d.rows, dense.weight->rows);
    context.ops.linear(context, args);
    context.ops.activate_backward(context, {dense.activation, false, args.y, d, args.y});
    gradients.linear(context, *dense.weight, dense.bias, args.y, pass.dense[i]);
    d = context.scratch.matrix(d.rows, dense.weight->cols);
    linear_input(context, gradients, *dense.weight, args.y, d);
  }
  const bool inputs = trains_in_front(*pass.media, gradients);
  Matrix states = d;
  if (!transformer_->pools_itself(pooling_)) {
    states = context.scratch.matrix(pass.batch.tokens(), config().hidden);
    context.ops.pool_backward(context, {pass.final, d, states, pass.batch.offsets, pooling_});
  }
  const InputGradients given = transformer_->backward(context, pass.input, pass.tape, states, gradients, inputs);
  for (size_t i = 0; inputs && i < pass.sources.size(); ++i) {
    if (pass.sources[i] == 0) {
      const bool encoder = audio_->trains(gradients) && !pass.media->sounds.encoded;
      const Matrix dx = projector_->backward(context, pass.heard, given.replaced[i], gradients, encoder);
      if (encoder) audio_->backward(context, pass.media->sounds, pass.heard_tape, dx, gradients);
    } else if (vision_->trains(gradients)) {
      vision_->backward(context, pass.media->pictures, pass.seen_tape, {given.replaced[i], given.added}, gradients);
    }
  }
}

}  // namespace conan
