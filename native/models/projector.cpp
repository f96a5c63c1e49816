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

}  // namespace conan
