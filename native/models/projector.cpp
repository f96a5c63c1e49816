#include "models/projector.h"

namespace conan {

Projector::Projector(Context& context, const ConfigReader& config, WeightLoader& loader, WeightFormat format) {
  const int64_t inputs = config.integer("input_size"), hidden = config.integer("hidden_size"), outputs = config.integer("output_size");
  activation_ = read_activation(config, "hidden_act", "gelu");
  first_ = loader.pack(context, {"audio_projector.linear_1"}, {hidden}, inputs, format);
  second_ = loader.pack(context, {"audio_projector.linear_2"}, {outputs}, hidden, format);
  if (config.boolean("bias", true)) {
    first_bias_ = loader.take_values("audio_projector.linear_1.bias", {hidden});
    second_bias_ = loader.take_values("audio_projector.linear_2.bias", {outputs});
  }
  loader.require_all_used("audio_projector.");
}

Matrix Projector::forward(Context& context, const Matrix& x) const {
  const Matrix out = context.scratch.matrix(x.rows, outputs());
  context.ops.for_rows(context, x.rows, inputs() + first_->rows + outputs(), [&](Context& own, int64_t first, int64_t count) {
    Arena::Scope scope(own.scratch);
    LinearArgs args;
    args.x = x.slice(first, count);
    args.weight = first_.get();
    args.bias = first_bias_.empty() ? nullptr : first_bias_.data();
    args.activation = activation_;
    args.y = own.scratch.matrix(count, first_->rows);
    own.ops.linear(own, args);
    args.x = args.y;
    args.weight = second_.get();
    args.bias = second_bias_.empty() ? nullptr : second_bias_.data();
    args.activation = Activation::none;
    args.y = out.slice(first, count);
    own.ops.linear(own, args);
  });
  return out;
}

bool Projector::trains(const Gradients& gradients) const {
  return gradients.wants(*first_) || gradients.wants(*second_) || gradients.wants(first_bias_) || gradients.wants(second_bias_);
}

Matrix Projector::backward(Context& context, const Matrix& x, const Matrix& dy, Gradients& gradients, bool inputs) const {
  const Matrix dx = inputs ? context.scratch.matrix(x.rows, x.cols) : Matrix{};
  Arena::Scope scope(context.scratch);
  const Matrix u = context.scratch.matrix(x.rows, first_->rows), h = context.scratch.matrix(x.rows, first_->rows);
  LinearArgs args;
  args.x = x;
  args.weight = first_.get();
  args.bias = first_bias_.data();
  args.y = u;
  context.ops.linear(context, args);
  context.ops.activate(context, {activation_, false, u, h});
  gradients.linear(context, *second_, second_bias_, dy, h);
  linear_input(context, gradients, *second_, dy, h);
  context.ops.activate_backward(context, {activation_, false, u, h, u});
  gradients.linear(context, *first_, first_bias_, u, x);
  if (inputs) linear_input(context, gradients, *first_, u, dx);
  return dx;
}

}  // namespace conan
