#include "models/text_model.h"

#include <algorithm>
#include <cmath>
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

TextModel::TextModel(const ModelOptions& options) : pooling_(options.pooling) {
  const std::string config_path = options.directory + "/config.json";
  const Json config = Json::parse(read_text_file(config_path), config_path);
  TransformerConfig transformer = read_transformer_config(config, config_path);
  checkpoint_ = std::make_unique<Checkpoint>(options.directory);
  if (checkpoint_->names().empty()) fail("TENSOR_MISSING", options.directory, ": the checkpoint holds no tensors");
  for (const std::string& adapter : options.adapters) adapters_.push_back(std::make_unique<Adapter>(adapter));
  checkpoint_dtype_ = main_dtype(*checkpoint_);
  format_ = choose_format(options.dtype, checkpoint_dtype_);

  const OperationTable& table = cpu_backend();
  require(table);
  context_ = std::make_unique<Context>(table, options.threads > 0 ? options.threads : ThreadPool::default_threads());
  context_->cancelled = &cancelled_;
  std::optional<Pooling> one_row;
  if (pooling_ == Pooling::cls || pooling_ == Pooling::last) one_row = pooling_;
  loader_ = std::make_unique<WeightLoader>(*checkpoint_, adapters_, probe_tensor(transformer));
  transformer_ = std::make_unique<Transformer>(*context_, std::move(transformer), *loader_, format_, one_row);
  unused_ = loader_->unused();
  dimensions_ = this->config().hidden;

  std::vector<std::unique_ptr<Adapter>> none;
  for (const DenseOptions& dense : options.dense) {
    if (dense.inputs != dimensions_) fail("CONFIG_INVALID", dense.directory, ": \"in_features\": expected ", dimensions_, ", got ", dense.inputs);
    Checkpoint checkpoint(dense.directory);
    WeightLoader loader(checkpoint, none, "linear.weight");
    Dense layer;
    // In f32 whatever the model's dtype: a small matrix at the very end, where rounding is not averaged out.
    layer.weight = loader.pack(*context_, {"linear"}, {dense.outputs}, dense.inputs, WeightFormat::f32);
    if (dense.bias) layer.bias = loader.take_values("linear.bias", {dense.outputs});
    layer.activation = dense.activation;
    dense_.push_back(std::move(layer));
    dimensions_ = dense.outputs;
  }
}

size_t TextModel::memory_bytes() const {
  size_t total = transformer_->weight_bytes() + context_->scratch_bytes();
  for (const Dense& dense : dense_) total += dense.weight->bytes;
  return total;
}

void TextModel::embed(const TokenBatch& batch, bool normalize, int64_t dimensions, float* out) {
  std::lock_guard<std::mutex> lock(running_);
  cancelled_ = false;
  Context& context = *context_;
  Arena::Scope scope(context.scratch);
  Matrix x = transformer_->forward(context, batch, pooling_);
  for (const Dense& dense : dense_) {
    LinearArgs args;
    args.x = x;
    args.weight = dense.weight.get();
    args.bias = dense.bias.empty() ? nullptr : dense.bias.data();
    args.activation = dense.activation;
    args.y = context.scratch.matrix(x.rows, dense.weight->rows);
    context.ops.linear(context, args);
    x = args.y;
  }
  x = x.columns(0, dimensions);
  if (normalize) context.ops.normalize(context, {x});
  for (int64_t b = 0; b < x.rows; ++b) {
    std::copy_n(x.row(b), dimensions, out + b * dimensions);
    float sum = 0;
    for (int64_t c = 0; c < dimensions; ++c) sum += std::fabs(x.row(b)[c]);
    if (!std::isfinite(sum)) fail("VECTOR_NOT_FINITE", "input ", b, ": its vector holds a NaN or an infinity");
  }
}

std::vector<std::vector<float>> TextModel::hidden_states(const TokenBatch& batch) {
  std::lock_guard<std::mutex> lock(running_);
  cancelled_ = false;
  Arena::Scope scope(context_->scratch);
  std::vector<std::vector<float>> out;
  auto keep = [&](const Matrix& x) {
    std::vector<float>& values = out.emplace_back();
    for (int64_t t = 0; t < x.rows; ++t) values.insert(values.end(), x.row(t), x.row(t) + x.cols);
  };
  keep(transformer_->forward(*context_, batch, std::nullopt, [&](int64_t, const Matrix& x) { keep(x); }));
  return out;
}

}  // namespace conan
