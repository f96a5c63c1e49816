#include "models/transformer.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"

namespace conan {

namespace {

std::string at_layer(const std::string& name, int64_t layer) {
  std::string out = name;
  const size_t hole = out.find("{}");
  if (hole != std::string::npos) out.replace(hole, 2, std::to_string(layer));
  return out;
}

/// T5's bucket of a distance, as MPNet uses it: exact up to 8, then logarithmic up to 128, each direction apart.
int relative_bucket(int64_t key_minus_query, int buckets) {
  const int half = buckets / 2, exact = half / 2;
  int64_t n = -key_minus_query;
  const int side = n < 0 ? half : 0;
  n = std::abs(n);
  if (n < exact) return side + int(n);
  const float scaled = std::log(float(n) / float(exact)) / std::log(128.f / float(exact)) * float(half - exact);
  return side + std::min(half - 1, exact + int(scaled));
}

}  // namespace

Transformer::Norm Transformer::load_norm(WeightLoader& loader, const std::string& name) const {
  Norm norm;
  if (name.empty()) return norm;
  norm.weight = loader.take_values(name + ".weight", {config_.hidden}, config_.norm_weight_offset);
  if (config_.norm_bias) norm.bias = loader.take_values(name + ".bias", {config_.hidden});
  return norm;
}

Transformer::Transformer(Context& context, TransformerConfig config, WeightLoader& loader, WeightFormat format, std::optional<Pooling> one_row)
    : config_(std::move(config)), one_row_(one_row), reduced_(is_reduced(format)), layers_(size_t(config_.layers)) {
  apart_ = loader.training();
  const TransformerConfig& c = config_;
  const TensorNames& n = c.names;
  if (n.token_embedding.empty()) {
    // A tower over something else than tokens is given its embeddings.
  } else if (c.tied_head && !loader.has(n.token_embedding + ".weight") && loader.has_head()) {
    token_embedding_ = loader.take_head({c.vocab_size, c.hidden});
  } else {
    token_embedding_ = loader.take(n.token_embedding + ".weight", {c.vocab_size, c.hidden});
  }
  // transformers rounds Gemma's factor to the dtype of the table it multiplies.
  if (c.embedding_scale != 1 && token_embedding_.dtype == Dtype::bf16) config_.embedding_scale = bf16_to_f32(f32_to_bf16(c.embedding_scale));
  if (!n.position_embedding.empty())
    position_embedding_ = loader.take(n.position_embedding + ".weight", {c.max_positions + c.position_offset, c.hidden});
  if (!n.type_embedding.empty()) {
    type_rows_ = loader.take_values(n.type_embedding + ".weight", {c.type_vocab_size, c.hidden});  // a text alone is all of type 0
  }
  embedding_norm_ = load_norm(loader, n.embedding_norm);
  if (c.relative_buckets) {
    relative_values_ = loader.take_values(n.relative_bias + ".weight", {c.relative_buckets, c.heads});
    spread_relative_bias();
  }
  if (apart_ && n.qkv.size() == 1) one_row_.reset();  // one tensor cannot train in two places
  for (int64_t i = 0; i < c.layers; ++i) load_layer(context, loader, format, i, one_row_ && i == c.layers - 1);
  final_norm_ = load_norm(loader, n.final_norm);
  loader.require_all_used(n.layers);
  rope_tables_.resize(c.ropes.size()), rope_axes_.resize(c.ropes.size());
  for (const Layer& layer : layers_)
    for (const auto* weight : {&layer.qkv, &layer.q, &layer.kv, &layer.output, &layer.mlp_in, &layer.mlp_out})
      if (*weight) weight_bytes_ += (*weight)->bytes;
  for (const TensorView* table : {&token_embedding_, &position_embedding_}) {
    if (loader.changes(*table)) continue;
    if (Resident copy = reside(context, table->data, table->data ? table->bytes() : 0)) {
      residents_.push_back(std::move(copy));
      weight_bytes_ += table->bytes();
    }
  }
  if (!apart_) residents_.push_back(reside(context, relative_bias_));  // what trains may change it
}

/// The bias of every distance a query and a key can have, from that of its bucket.
void Transformer::spread_relative_bias() {
  const TransformerConfig& c = config_;
  if (relative_values_.empty()) return;
  const int64_t reach = c.max_positions - 1;
  relative_bias_.resize(size_t(c.heads * (2 * reach + 1) + 64));  // kernels read a register beyond the end
  for (int64_t h = 0; h < c.heads; ++h)
    for (int64_t d = -reach; d <= reach; ++d)
      relative_bias_[size_t(h * (2 * reach + 1) + reach + d)] = relative_values_[size_t(relative_bucket(-d, c.relative_buckets) * c.heads + h)];
}

/// And back: gradients of all distances into those of their buckets.
void Transformer::gather_relative_bias(const std::vector<float>& gradient, float* buckets) const {
  const TransformerConfig& c = config_;
  const int64_t reach = c.max_positions - 1;
  for (int64_t h = 0; h < c.heads; ++h)
    for (int64_t d = -reach; d <= reach; ++d)
      buckets[relative_bucket(-d, c.relative_buckets) * c.heads + h] += gradient[size_t(h * (2 * reach + 1) + reach + d)];
}

void Transformer::load_layer(Context& context, WeightLoader& loader, WeightFormat format, int64_t index, bool split_queries) {
  const TransformerConfig& c = config_;
  const TensorNames& n = c.names;
  Layer& layer = layers_[size_t(index)];
  auto named = [&](const std::vector<std::string>& names) {
    std::vector<std::string> out;
    for (const std::string& name : names) out.push_back(at_layer(name, index));
    return out;
  };
  auto append_bias = [&](Values& bias, const std::string& name, int64_t size) { loader.append_values(bias, name + ".bias", {size}); };
  if (c.layer[size_t(index)].input_norm) layer.attention_norm = load_norm(loader, at_layer(n.attention_norm, index));
  layer.attention_post_norm = load_norm(loader, at_layer(n.attention_post_norm, index));
  layer.mlp_norm = load_norm(loader, at_layer(n.mlp_norm, index));
  layer.mlp_post_norm = load_norm(loader, at_layer(n.mlp_post_norm, index));

  const std::vector<std::string> qkv = named(n.qkv);
  const int64_t Q = c.query_width(), KV = c.kv_width();
  if (qkv.size() == 1) {
    if (split_queries) {
      layer.q = loader.pack_slice(context, qkv[0], Q + 2 * KV, c.hidden, 0, Q, format);
      layer.kv = loader.pack_slice(context, qkv[0], Q + 2 * KV, c.hidden, Q, 2 * KV, format);
    } else {
      layer.qkv = loader.pack(context, qkv, {Q + 2 * KV}, c.hidden, format);
    }
    if (c.qkv_bias) append_bias(layer.qkv_bias, qkv[0], Q + 2 * KV);
  } else {
    if (split_queries) {
      layer.q = loader.pack(context, {qkv[0]}, {Q}, c.hidden, format);
      layer.kv = loader.pack(context, {qkv[1], qkv[2]}, {KV, KV}, c.hidden, format);
    } else {
      layer.qkv = loader.pack(context, qkv, {Q, KV, KV}, c.hidden, format);
    }
    if (c.qkv_bias)
      for (int i = 0; i < 3; ++i) {
        if (i == 1 && !c.key_bias) layer.qkv_bias.storage().resize(size_t(Q + KV));
        else append_bias(layer.qkv_bias, qkv[size_t(i)], i ? KV : Q);
      }
  }
  if (!n.q_norm.empty()) {
    layer.q_norm = loader.take_values(at_layer(n.q_norm, index) + ".weight", {c.head_dim}, c.norm_weight_offset);
    layer.k_norm = loader.take_values(at_layer(n.k_norm, index) + ".weight", {c.head_dim}, c.norm_weight_offset);
  }
  layer.output = loader.pack(context, {at_layer(n.output, index)}, {c.hidden}, Q, format);
  if (c.output_bias) append_bias(layer.output_bias, at_layer(n.output, index), c.hidden);

  const std::vector<std::string> mlp_in = named(n.mlp_in);
  const int64_t width = c.gated ? 2 * c.intermediate : c.intermediate;
  const bool gated = c.gated && !apart_;
  layer.mlp_in = n.value_first
                     ? loader.pack_swapped(context, mlp_in[0], c.intermediate, c.hidden, format, gated)
                     : loader.pack(context, mlp_in, std::vector<int64_t>(mlp_in.size(), width / int64_t(mlp_in.size())), c.hidden, format, gated);
  layer.mlp_out = loader.pack(context, {at_layer(n.mlp_out, index)}, {c.hidden}, c.intermediate, format);
  if (c.mlp_bias) {
    if (c.mlp_in_bias)
      for (const std::string& name : mlp_in) append_bias(layer.mlp_in_bias, name, width / int64_t(mlp_in.size()));
    append_bias(layer.mlp_out_bias, at_layer(n.mlp_out, index), c.hidden);
  }
}

void Transformer::RopeTable::fill(Context& context, const RopeConfig& config, int64_t axes, int64_t count) {
  positions = count;
  cos.clear(), sin.clear();
  for (int64_t axis = 0; axis < axes; ++axis)
    for (int64_t p = 0; p < count; ++p)
      for (size_t i = 0; i < config.frequencies.size(); ++i) {
        const bool own = axes == 1 || config.axis[i] == axis;
        const float angle = float(p) * config.frequencies[i];  // in f32, as the reference does
        cos.push_back(own ? float(std::cos(double(angle))) * config.factor : 0);
        sin.push_back(own ? float(std::sin(double(angle))) * config.factor : 0);
      }
  residents[0] = reside(context, cos), residents[1] = reside(context, sin);
}

/// A row for every position.
Transformer::Angles Transformer::angles(Context& context, int rope, int64_t positions) const {
  RopeTable& table = rope_tables_[size_t(rope)];
  const RopeConfig& config = config_.ropes[size_t(rope)];
  if (table.positions < positions) table.fill(context, config, 1, std::min(config_.max_positions, std::max<int64_t>(512, positions * 2)));
  return {table.cos.data(), table.sin.data(), int(config.frequencies.size())};
}

/// A row for every token of this pass, for positions with several axes, each of which has some of the frequencies. In the context's scratch.
Transformer::Angles Transformer::angles_by_axes(Context& context, int rope, const TransformerInput& input) const {
  RopeTable& table = rope_axes_[size_t(rope)];
  const RopeConfig& config = config_.ropes[size_t(rope)];
  const int64_t T = input.batch.tokens(), half = int64_t(config.frequencies.size()), axes = int64_t(input.positions.size()) / T;
  const int64_t needed = *std::max_element(input.positions.begin(), input.positions.end()) + int64_t(1);
  if (table.positions < needed) table.fill(context, config, axes, std::max<int64_t>(64, needed * 2));
  std::vector<int32_t> rows(size_t(T * axes));
  for (int64_t t = 0; t < T; ++t)
    for (int64_t axis = 0; axis < axes; ++axis)
      rows[size_t(t * axes + axis)] = int32_t(axis * table.positions + input.positions[size_t(axis * T + t)]);
  Matrix out[2];
  for (int i = 0; i < 2; ++i) {
    const std::vector<float>& from = i ? table.sin : table.cos;
    out[i] = context.scratch.contiguous(T, half);
    context.ops.gather(context, {{const_cast<float*>(from.data()), axes * table.positions, half, half}, out[i], rows.data(), int(axes)});
  }
  return {out[0].data, out[1].data, int(half)};
}

void Transformer::check(const TokenBatch& batch) const {
  for (int b = 0; b < batch.sequences; ++b) {
    const int64_t length = batch.offsets[b + 1] - batch.offsets[b];
    if (length <= 0) fail("INVALID_INPUT", "input ", b, ": expected at least one token, got none");
    if (length > config_.max_positions) fail("INPUT_TOO_LONG", "input ", b, ": expected at most ", config_.max_positions, " tokens, got ", length);
  }
  for (int64_t t = 0; batch.ids && t < batch.tokens(); ++t)
    if (batch.ids[t] < 0 || batch.ids[t] >= config_.vocab_size)
      fail("INVALID_INPUT", "token id ", batch.ids[t], ": expected 0 to ", config_.vocab_size - 1, " (does the tokenizer belong to this model?)");
}

/// Whether so many columns may be bf16 in a product with this weight, or with its transpose.
bool Transformer::takes_narrow(Context& context, const Weight& weight, int64_t cols) const {
  return context.ops.narrow_rows && weight.format == WeightFormat::bf16 && cols % 64 == 0;
}

/// Whether rows that norm or attention makes for this weight may be, or the gradients of these.
bool Transformer::narrow_into(Context& context, const Weight& weight) const { return takes_narrow(context, weight, weight.cols); }

/// Whether attention is given bf16.
bool Transformer::narrow_attention(Context& context) const {
  return context.ops.narrow_rows && reduced_ && relative_bias_.empty() && AttentionArgs::narrow_heads(config_.head_dim);
}

/// Whether rows between an MLP's products are bf16.
bool Transformer::narrow_inner(Context& context, const Layer& layer) const {
  return (apart_ ? context.ops.narrow_rows : context.ops.narrow_linear) && layer.mlp_in->format == WeightFormat::bf16 &&
         layer.mlp_out->format == WeightFormat::bf16 && config_.intermediate % 64 == 0;
}

/// Whether a layer's queries, keys and values are bf16 from the product on, because nobody wants them otherwise.
bool Transformer::narrow_only(const Pass& pass, int64_t index) const {
  const Layer& layer = layers_[size_t(index)];
  const Weight& weight = *(layer.qkv ? layer.qkv : layer.kv);
  return pass.narrow && weight.format == WeightFormat::bf16 && weight.rows % 64 == 0 && turns_narrow(pass, index);
}

/// Whether a layer's rotation, if it has one, takes and makes bf16 (RopeArgs).
bool Transformer::turns_narrow(const Pass& pass, int64_t index) const {
  const int rope = config_.layer[size_t(index)].rope;
  return rope < 0 || pass.ropes[size_t(rope)].half % 2 == 0;
}

void Transformer::normalize(Context& context, const Norm& norm, const Matrix& x, const Matrix& y, const Matrix& residual, const Bf16Matrix& narrow_y,
                            const Matrix& copy) const {
  NormArgs args;
  args.kind = config_.norm;
  args.eps = config_.norm_eps;
  args.x = x;
  args.weight = norm.weight.data();
  args.bias = norm.bias.data();
  args.residual = residual;
  args.y = y;
  args.narrow_y = narrow_y, args.copy = copy;
  context.ops.norm(context, args);
}

Rows Transformer::made(const Pass& pass, int64_t index) const {
  const Tape::Kept* kept = pass.kept(index);
  if (narrow_only(pass, index)) return kept ? kept->qkv : Rows(pass.narrow_qkv);
  // What is turned in its place is kept only where it is not wanted as it was before.
  return kept && (layers_[size_t(index)].q_norm.empty() || pass.narrow) ? kept->qkv : Rows(pass.qkv);
}

Rows Transformer::turned(const Pass& pass, int64_t index) const {
  const Tape::Kept* kept = pass.kept(index);
  if (!pass.narrow) return made(pass, index);
  if (!kept || !narrow_only(pass, index)) return pass.narrow_qkv;
  return kept->turned ? kept->turned : kept->qkv;
}

RopeArgs Transformer::rotation(int64_t index, const Pass& pass, const Rows& x, bool queries, const int32_t* positions, const Rows& y) const {
  const Layer& layer = layers_[size_t(index)];
  const int rope = config_.layer[size_t(index)].rope;
  RopeArgs args;
  args.x = x.wide;
  args.heads = int(queries ? config_.heads : config_.kv_heads);
  args.head_dim = int(config_.head_dim);
  args.norm_weight = (queries ? layer.q_norm : layer.k_norm).data();
  args.eps = config_.norm_eps;
  if (rope >= 0) {
    const Angles& angles = pass.ropes[size_t(rope)];
    args.cos = angles.cos, args.sin = angles.sin, args.half = angles.half;
    args.positions = positions;
  }
  args.narrow_x = x.narrow;
  args.narrow_y = y.narrow;
  return args;
}

/// Whether queries and keys of a layer are normed or turned.
bool Transformer::rotates(int64_t index) const { return config_.layer[size_t(index)].rope >= 0 || !layers_[size_t(index)].q_norm.empty(); }

void Transformer::rotate(Context& context, int64_t index, const Pass& pass, const Rows& x, bool queries, const int32_t* positions,
                         const Rows& y) const {
  if (rotates(index)) context.ops.rope(context, rotation(index, pass, x, queries, positions, y));
  else if (x.wide.data && y.narrow.data) context.ops.narrow(context, {x.wide, y.narrow});
}

/// Queries, keys and values of rows [first, first + count) for layer `index`.
void Transformer::project(Context& context, int64_t index, const Pass& pass, int64_t first, int64_t count) const {
  const Layer& layer = layers_[size_t(index)];
  const int64_t Q = config_.query_width(), KV = config_.kv_width();
  Arena::Scope scope(context.scratch);
  const Tape::Kept* kept = pass.kept(index);
  const Matrix x = pass.x.slice(first, count);
  const Rows qkv = made(pass, index).slice(first, count), to = turned(pass, index).slice(first, count);
  const Weight& weight = *(layer.qkv ? layer.qkv : layer.kv);
  LinearArgs args;
  args.x = x;
  if (config_.placement != NormPlacement::post && layer.attention_norm) {
    if (kept && kept->a.data) args.narrow_x = kept->a.slice(first, count);
    else if (narrow_into(context, weight)) args.narrow_x = context.scratch.bf16_matrix(count, config_.hidden);
    else args.x = context.scratch.matrix(count, config_.hidden);
    const Matrix* const copy = pass.recorded(index);
    normalize(context, layer.attention_norm, x, args.x, {}, args.narrow_x, copy ? copy->slice(first, count) : Matrix{});
  }
  const int64_t own = layer.qkv ? 0 : Q;  // queries come later where few are wanted
  const Rows y = qkv.columns(own, weight.rows);
  args.weight = &weight;
  args.bias = layer.qkv_bias.empty() ? nullptr : layer.qkv_bias.data() + own;
  args.y = y.wide, args.narrow_y = y.narrow;
  const int32_t* const positions = pass.positions.data() + first;
  if (context.ops.linear_rope && qkv.narrow.data && qkv.narrow.data == to.narrow.data && rotates(index)) {
    const Rows q = to.columns(0, Q), k = to.columns(Q, KV);
    context.ops.linear_rope(context, args, layer.qkv ? rotation(index, pass, q, true, positions, q) : RopeArgs{},
                            rotation(index, pass, k, false, positions, k));
    return;
  }
  context.ops.linear(context, args);
  const auto part = [&](int64_t column, int64_t count, bool queries) {
    rotate(context, index, pass, qkv.columns(column, count), queries, positions, to.columns(column, count));
  };
  if (layer.qkv) {
    if (kept && !layer.q_norm.empty() && !to.narrow.data) copy(context, qkv.wide, kept->qkv.wide.slice(first, count));
    part(0, Q, true);
  }
  part(Q, KV, false);
  if (to.narrow.data && qkv.wide.data) context.ops.narrow(context, {qkv.wide.columns(Q + KV, KV), to.narrow.columns(Q + KV, KV)});
}

AttentionArgs Transformer::attention_of(int64_t index, const Rows& q, const Rows& k, const Rows& v, const TokenBatch& batch, const int32_t* q_offsets,
                                        const int32_t* q_starts) const {
  AttentionArgs args;
  args.q = q.wide, args.k = k.wide, args.v = v.wide;
  args.narrow_q = q.narrow, args.narrow_k = k.narrow, args.narrow_v = v.narrow;
  args.q_offsets = q_offsets;
  args.kv_offsets = batch.offsets;
  args.q_starts = q_starts;
  args.sequences = batch.sequences;
  args.heads = int(config_.heads), args.kv_heads = int(config_.kv_heads), args.head_dim = int(config_.head_dim);
  args.scale = config_.attention_scale;
  args.left = config_.layer[size_t(index)].left, args.right = config_.layer[size_t(index)].right;
  args.bias = relative_bias_.empty() ? nullptr : relative_bias_.data();
  args.bias_reach = config_.max_positions - 1;
  args.reduced = reduced_;
  return args;
}

void Transformer::attend(Context& context, int64_t index, const Pass& pass, const Rows& q, const Rows& y, const int32_t* q_offsets,
                         const int32_t* q_starts) const {
  const int64_t Q = config_.query_width(), KV = config_.kv_width();
  const Rows rows = turned(pass, index), values = rows.cols() > Q + KV ? rows : made(pass, index);
  AttentionArgs args = attention_of(index, q, rows.columns(Q, KV), values.columns(Q + KV, KV), pass.batch, q_offsets, q_starts);
  args.y = y.wide, args.narrow_y = y.narrow;
  context.ops.attention(context, args);
}

/// From attention to the end of the layer; x holds the layer's input and receives its output.
void Transformer::finish_layer(Context& context, const Layer& layer, const Rows& attended, const Matrix& x, const Tape::Kept* kept,
                               int64_t first) const {
  Arena::Scope scope(context.scratch);
  const TransformerConfig& c = config_;
  const bool sandwich = c.placement == NormPlacement::sandwich, post = c.placement == NormPlacement::post;
  Matrix side = post ? Matrix{} : context.scratch.matrix(x.rows, c.hidden);
  auto add_linear = [&](const Rows& input, const Weight& weight, const Values& bias, const Norm& norm_before_sum) {
    LinearArgs args;
    args.x = input.wide, args.narrow_x = input.narrow;
    args.weight = &weight;
    args.bias = bias.data();
    if (sandwich) {
      args.y = side;
      context.ops.linear(context, args);
      normalize(context, norm_before_sum, side, x, x);
    } else {
      args.residual = args.y = x;
      context.ops.linear(context, args);
    }
  };
  add_linear(attended, *layer.output, layer.output_bias, layer.attention_post_norm);
  const Matrix middle = kept ? kept->middle.slice(first, x.rows) : Matrix{};
  if (kept && !narrow_into(context, *layer.mlp_in)) copy(context, x, middle);
  if (post) normalize(context, layer.attention_norm, x, x);
  LinearArgs args;
  args.x = x;
  if (!post) {
    if (kept && kept->m.data) args.narrow_x = kept->m.slice(first, x.rows);
    else if (narrow_into(context, *layer.mlp_in)) args.narrow_x = context.scratch.bf16_matrix(x.rows, c.hidden);
    else args.x = side;
    normalize(context, layer.mlp_norm, x, args.x, {}, args.narrow_x, args.narrow_x.data ? middle : Matrix{});
  }
  const bool narrow = narrow_inner(context, layer);
  Rows inner;
  if (kept && kept->g.data) inner = kept->g.slice(first, x.rows);
  else if (narrow) inner = context.scratch.bf16_matrix(x.rows, c.intermediate);
  else inner = context.scratch.matrix(x.rows, c.intermediate);
  args.weight = layer.mlp_in.get();
  args.bias = layer.mlp_in_bias.data();
  if (apart_ && narrow) {
    args.narrow_y = kept ? kept->u.narrow.slice(first, x.rows) : context.scratch.bf16_matrix(x.rows, layer.mlp_in->rows);
    context.ops.linear(context, args);
    context.ops.activate(context, {c.activation, c.gated, {}, {}, args.narrow_y, inner.narrow});
  } else if (apart_) {
    args.y = kept && kept->u.wide.data ? kept->u.wide.slice(first, x.rows) : context.scratch.matrix(x.rows, layer.mlp_in->rows);
    context.ops.linear(context, args);
    if (kept && kept->u.narrow.data) context.ops.narrow(context, {args.y, kept->u.narrow.slice(first, x.rows)});
    context.ops.activate(context, {c.activation, c.gated, args.y, inner.wide});
  } else {
    args.activation = c.activation;
    args.y = inner.wide, args.narrow_y = inner.narrow;
    context.ops.linear(context, args);
  }
  add_linear(inner, *layer.mlp_out, layer.mlp_out_bias, layer.mlp_post_norm);
  if (post) normalize(context, layer.mlp_norm, x, x);
}

/// Hands the values of rows [first, first + count) over to x, the whole batch.
void Transformer::put_rows(Context& context, const RowValues& rows, const Matrix& x, int64_t first, int64_t count, bool add) {
  const auto begin = std::lower_bound(rows.rows.begin(), rows.rows.end(), first), end = std::lower_bound(begin, rows.rows.end(), first + count);
  if (begin == end) return;
  ScatterArgs args;
  args.x = rows.values.slice(begin - rows.rows.begin(), end - begin);
  args.y = x;
  args.rows = &*begin;
  args.add = add;
  context.ops.scatter(context, args);
}

Transformer::Pass Transformer::begin(Context& context, const TransformerInput& input) const {
  const TransformerConfig& c = config_;
  const TokenBatch& batch = input.batch;
  Pass pass(batch);
  pass.narrow = narrow_attention(context);
  int64_t longest = 0;
  pass.positions.resize(size_t(batch.tokens()));
  for (int b = 0; b < batch.sequences; ++b) {
    const int32_t first = batch.offsets[b], end = batch.offsets[b + 1];
    std::iota(pass.positions.begin() + first, pass.positions.begin() + end, 0);
    longest = std::max<int64_t>(longest, end - first);
    if (!position_embedding_.data) continue;
    int32_t counted = 0;
    for (int32_t t = first; t < end; ++t) {
      const bool pad = c.pad_id >= 0 && batch.ids && batch.ids[t] == c.pad_id;  // RoBERTa: a padding token does not count
      pass.table_rows.push_back(pad ? c.pad_id : counted++ + c.position_offset);
    }
  }
  pass.zeros.assign(size_t(batch.sequences), 0);
  if (!input.positions.empty()) std::iota(pass.positions.begin(), pass.positions.end(), 0);
  for (size_t r = 0; r < c.ropes.size(); ++r)
    pass.ropes.push_back(input.positions.empty() ? angles(context, int(r), longest) : angles_by_axes(context, int(r), input));
  pass.residents = {reside(context, pass.positions), reside(context, pass.zeros),
                    reside(context, batch.offsets, size_t(batch.sequences + 1) * sizeof(int32_t))};
  return pass;
}

Transformer::Queries Transformer::queries_of(const Pass& pass, bool one_row) const {
  Queries out;
  out.offsets.push_back(0);
  for (int b = 0; b < pass.batch.sequences; ++b) {
    const int32_t begin = pass.batch.offsets[b], end = pass.batch.offsets[b + 1];
    const int32_t first = !one_row || *one_row_ == Pooling::cls ? begin : end - 1;
    for (int32_t t = first; t < (one_row ? first + 1 : end); ++t) out.rows.push_back(t);
    out.starts.push_back(first - begin);
    out.offsets.push_back(int32_t(out.rows.size()));
  }
  for (const int32_t row : out.rows) out.positions.push_back(pass.positions[size_t(row)]);
  return out;
}

/// The embeddings of rows [first, first + count) as they are before any norm.
void Transformer::embed(Context& context, const TokenBatch& batch, const Pass& pass, const Matrix& x, int64_t first) const {
  EmbedArgs args;
  args.ids = batch.ids + first;
  args.table = &token_embedding_;
  args.scale = config_.embedding_scale;
  if (position_embedding_.data) args.position_table = &position_embedding_, args.positions = pass.table_rows.data() + first;
  args.type_row = type_rows_.data();
  args.y = x;
  context.ops.embed(context, args);
}

/// Room for what backward() then need not compute again, of layers of a kind that keeps it and while the budget lasts.
void Transformer::keep(Context& context, const Pass& pass) const {
  const TransformerConfig& c = config_;
  Tape& tape = *pass.tape;
  tape.kept.clear();
  if (c.placement != NormPlacement::pre) return;
  const int64_t T = pass.batch.tokens(), Q = c.query_width(), KV = c.kv_width(), C = c.hidden;
  const int64_t layers = one_row_ ? c.layers - 1 : c.layers;  // a last layer of few rows costs little to compute again
  for (int64_t i = tape.lowest; i < layers; ++i) {
    const Layer& layer = layers_[size_t(i)];
    Tape::Kept kept;
    size_t bytes = 0;
    // First what it comes to, then the memory.
    const auto lay_out = [&](auto wide, auto narrow) {
      const auto either = [&](bool is_narrow, int64_t cols) -> Rows { return is_narrow ? Rows(narrow(cols)) : Rows(wide(cols)); };
      const auto product_of = [&](bool is_narrow, const Weight& weight, Bf16Matrix& x) {
        if (is_narrow && narrow_into(context, weight) && tape.gradients->wants(weight)) x = narrow(weight.cols);
      };
      const bool narrow_made = narrow_only(pass, i);
      kept.qkv = either(narrow_made, Q + 2 * KV);
      if (narrow_made && !layer.q_norm.empty()) kept.turned = narrow(Q + KV);
      kept.middle = wide(C);
      kept.u = either(reduced_, layer.mlp_in->rows);
      product_of(bool(layer.attention_norm), *layer.qkv, kept.a);
      product_of(bool(pass.attended.narrow.data), *layer.output, kept.attended);
      product_of(true, *layer.mlp_in, kept.m);
      product_of(narrow_inner(context, layer), *layer.mlp_out, kept.g);
    };
    lay_out([&](int64_t cols) { return bytes += size_t(T * padded_stride(cols)) * sizeof(float), Matrix{}; },
            [&](int64_t cols) { return bytes += size_t(T * cols) * sizeof(uint16_t), Bf16Matrix{}; });
    if (bytes > tape.budget) return;
    tape.budget -= bytes;
    lay_out([&](int64_t cols) { return tape.memory->matrix(T, cols); }, [&](int64_t cols) { return tape.memory->bf16_matrix(T, cols); });
    tape.kept.push_back(kept);
  }
}

/// Values that replace embeddings, plus the learned positions and type that every row gets beside its token's embedding (BERT).
std::vector<RowValues> Transformer::with_positions(Context& context, const std::vector<RowValues>& replaced,
                                                   const std::vector<int32_t>& table_rows) const {
  if (!position_embedding_.data) return replaced;
  std::vector<RowValues> out;
  for (const RowValues& given : replaced) {
    const Matrix sum = context.scratch.matrix(given.values.rows, config_.hidden);
    std::vector<int32_t> places;
    for (const int32_t row : given.rows) places.push_back(table_rows[size_t(row)]);
    EmbedArgs args;
    args.ids = places.data();
    args.table = &position_embedding_;
    args.type_row = type_rows_.data();
    args.y = sum;
    context.ops.embed(context, args);
    context.ops.scatter(context, {given.values, sum, nullptr, true});
    out.push_back({given.rows, sum});
  }
  return out;
}

Matrix Transformer::forward(Context& context, const TransformerInput& input, std::optional<Pooling> pooling, const Observer& observer,
                            Tape* tape) const {
  const TokenBatch& batch = input.batch;
  check(batch);
  const TransformerConfig& c = config_;
  const OperationTable& ops = context.ops;
  const int64_t T = batch.tokens(), B = batch.sequences, Q = c.query_width(), KV = c.kv_width();

  Pass pass = begin(context, input);
  pass.x = batch.ids ? context.scratch.matrix(T, c.hidden) : input.embeddings;
  if (pass.narrow) pass.narrow_qkv = context.scratch.bf16_matrix(T, Q + 2 * KV);
  bool wide = false;
  for (int64_t i = 0; i < c.layers; ++i) wide |= !narrow_only(pass, i);
  if (wide) pass.qkv = context.scratch.matrix(T, Q + 2 * KV);
  if (pass.narrow && narrow_into(context, *layers_[0].output)) pass.attended = context.scratch.bf16_matrix(T, Q);
  else pass.attended = context.scratch.matrix(T, Q);
  pass.tape = tape;
  if (tape) keep(context, pass);
  const int64_t width = 3 * c.hidden + c.intermediate + Q + 2 * KV;
  const std::vector<RowValues> replaced = with_positions(context, input.replaced, pass.table_rows);

  // The input of a layer goes to the tape beside its norm, where that makes bf16; else record() takes it there.
  const auto make_room = [&](int64_t i) {
    const Layer& layer = layers_[size_t(i)];
    if (tape && i >= tape->lowest && c.placement == NormPlacement::pre && layer.attention_norm &&
        narrow_into(context, layer.qkv ? *layer.qkv : *layer.kv))
      tape->states.push_back(tape->memory->matrix(T, c.hidden));
  };
  make_room(0);
  ops.for_rows(context, T, width, [&](Context& own, int64_t first, int64_t count) {
    const Matrix x = pass.x.slice(first, count);
    if (batch.ids) embed(own, batch, pass, x, first);
    for (const RowValues& rows : replaced) put_rows(own, rows, pass.x, first, count, false);
    if (embedding_norm_) normalize(own, embedding_norm_, x, x);
    project(own, 0, pass, first, count);
  });
  if (observer) observer(0, pass.x);

  if (int64_t(input.added.size()) >= c.layers)
    fail("CONFIG_INVALID", "expected fewer DeepStack layers than the ", c.layers, " layers of the language model, got ", input.added.size());
  const bool one_row = pooling && one_row_ == pooling && (tape || !observer);
  for (int64_t i = 0; i < c.layers; ++i) {
    if (context.cancelled && context.cancelled->load(std::memory_order_relaxed)) fail("ABORTED", "the forward pass was cancelled");
    const Layer& layer = layers_[size_t(i)];
    const bool last = i + 1 == c.layers;
    if (!layer.qkv) {
      // Queries were left out of project(): for the pooled row of each sequence, or here for all of them.
      const auto [rows, starts, offsets, positions] = queries_of(pass, one_row);
      const int64_t R = int64_t(rows.size());
      Matrix x = context.scratch.matrix(R, c.hidden), q = context.scratch.matrix(R, Q), attended = context.scratch.matrix(R, Q), input = x;
      ops.gather(context, {pass.x, x, rows.data()});
      if (c.placement != NormPlacement::post && layer.attention_norm) {
        input = context.scratch.matrix(R, c.hidden);
        normalize(context, layer.attention_norm, x, input);
      }
      LinearArgs args;
      args.x = input;
      args.weight = layer.q.get();
      args.bias = layer.qkv_bias.data();
      args.y = q;
      ops.linear(context, args);
      rotate(context, i, pass, q, true, positions.data(), q);
      attend(context, i, pass, q, attended, offsets.data(), starts.data());
      ops.for_rows(context, R, width, [&](Context& own, int64_t first, int64_t count) {
        finish_layer(own, layer, attended.slice(first, count), x.slice(first, count));
        if (observer || !final_norm_) return;
        normalize(own, final_norm_, x.slice(first, count), x.slice(first, count));
      });
      pass.x = x;
    } else {
      const Tape::Kept* kept = pass.kept(i);
      const Rows attended = kept && kept->attended.data ? Rows(kept->attended) : pass.attended;
      attend(context, i, pass, turned(pass, i).columns(0, Q), attended, batch.offsets, pass.zeros.data());
      if (!last) make_room(i + 1);
      ops.for_rows(context, T, width, [&](Context& own, int64_t first, int64_t count) {
        const Matrix x = pass.x.slice(first, count);
        finish_layer(own, layer, attended.slice(first, count), x, kept, first);
        if (size_t(i) < input.added.size()) put_rows(own, input.added[size_t(i)], pass.x, first, count, true);
        if (!last) project(own, i + 1, pass, first, count);
        else if (final_norm_ && !observer) normalize(own, final_norm_, x, x);
      });
    }
    if (observer) observer(i + 1, pass.x);
  }
  if (observer && final_norm_) normalize(context, final_norm_, pass.x, pass.x);
  if (!pooling) return pass.x;
  if (one_row) return pass.x;
  Matrix pooled = context.scratch.matrix(B, c.hidden);
  ops.pool(context, {pass.x, pooled, batch.offsets, *pooling});
  return pooled;
}

}  // namespace conan
