// The backward pass of the transformer: layer by layer from the top, each computed again from its recorded input.
#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "models/transformer.h"

namespace conan {

bool Transformer::trains_embeddings(const Gradients& gradients) const {
  return gradients.wants(token_embedding_) || gradients.wants(position_embedding_) || gradients.wants(type_rows_) ||
         gradients.wants(embedding_norm_.weight) || gradients.wants(embedding_norm_.bias);
}

int64_t Transformer::lowest_trained(const Gradients& gradients) const {
  if (trains_embeddings(gradients)) return 0;
  for (int64_t i = 0; i < config_.layers; ++i) {
    const Layer& layer = layers_[size_t(i)];
    for (const auto* weight : {&layer.qkv, &layer.q, &layer.kv, &layer.output, &layer.mlp_in, &layer.mlp_out})
      if (*weight && gradients.wants(**weight)) return i;
    for (const Values* values :
         {&layer.attention_norm.weight, &layer.attention_norm.bias, &layer.attention_post_norm.weight, &layer.attention_post_norm.bias,
          &layer.mlp_norm.weight, &layer.mlp_norm.bias, &layer.mlp_post_norm.weight, &layer.mlp_post_norm.bias, &layer.qkv_bias, &layer.q_norm,
          &layer.k_norm, &layer.output_bias, &layer.mlp_in_bias, &layer.mlp_out_bias})
      if (gradients.wants(*values)) return i;
  }
  // One bias of positions serves all layers.
  return gradients.wants(relative_values_) ? 0 : config_.layers;
}

bool Transformer::trains(const Gradients& gradients) const {
  return lowest_trained(gradients) < config_.layers || gradients.wants(final_norm_.weight) || gradients.wants(final_norm_.bias);
}

/// What a layer computes on its way; the names are those of the formulas in backward(). A last layer of few rows has its queries, and all
/// that follows attention, for those alone.
struct Transformer::LayerState {
  Matrix x_few, o, middle, d;
  Rows a, a_few, raw_q, raw_k, q, k, v, attended, m, u, g;
};

Transformer::Observer Transformer::record(Context& context, Tape& tape, int64_t lowest, const Gradients& gradients) const {
  tape.lowest = lowest;
  tape.gradients = &gradients;
  tape.states.clear();
  if (tape.memory) tape.memory->clear();  // what the pass before took serves this one too
  else tape.memory = std::make_unique<Arena>(context.ops);
  return [&context, &tape](int64_t layer, const Matrix& states) {
    if (layer < tape.lowest || layer - tape.lowest < int64_t(tape.states.size())) return;
    tape.states.push_back(tape.memory->matrix(states.rows, states.cols));
    copy(context, states, tape.states.back());
  };
}

InputGradients Transformer::backward(Context& context, const TransformerInput& input, const Tape& tape, const Matrix& d_final, Gradients& gradients,
                                     bool inputs, const Observer& above) const {
  const TransformerConfig& c = config_;
  const OperationTable& ops = context.ops;
  const Pass pass = begin(context, input);
  const int64_t T = input.batch.tokens(), C = c.hidden, Q = c.query_width(), KV = c.kv_width();
  const bool post = c.placement == NormPlacement::post, sandwich = c.placement == NormPlacement::sandwich;

  auto project_into = [&](const Rows& x, const Weight& weight, const float* bias, const Rows& y) {
    LinearArgs args;
    args.x = x.wide, args.narrow_x = x.narrow;
    args.weight = &weight;
    args.bias = bias;
    args.y = y.wide, args.narrow_y = y.narrow;
    ops.linear(context, args);
  };
  auto project = [&](const Rows& x, const Weight& weight, const float* bias) {
    const Matrix y = context.scratch.matrix(x.rows(), weight.rows);
    project_into(x, weight, bias, y);
    return y;
  };
  // For a product by this weight, or with the gradients of what it makes: bf16 where the device has it so.
  auto made_for = [&](bool narrow, int64_t rows, int64_t cols) -> Rows {
    if (narrow) return context.scratch.bf16_matrix(rows, cols);
    return context.scratch.matrix(rows, cols);
  };
  auto gradient_for = [&](const Weight& weight, const Matrix& d) -> Rows {
    if (!takes_narrow(context, weight, d.cols)) return d;
    const Rows out(d, context.scratch.bf16_matrix(d.rows, d.cols));
    ops.narrow(context, {d, out.narrow});
    return out;
  };
  auto normed = [&](const Norm& norm, const Matrix& x) {
    const Matrix y = context.scratch.matrix(x.rows, x.cols);
    normalize(context, norm, x, y);
    return y;
  };
  auto normed_for = [&](const Weight& weight, const Norm& norm, const Matrix& x) {
    const Rows y = made_for(narrow_into(context, weight), x.rows, x.cols);
    normalize(context, norm, x, y.wide, {}, y.narrow);
    return y;
  };
  // `narrow_dx`: dx once more, for a product.
  auto norm_gradient = [&](const Norm& norm, const Matrix& x, const Rows& d, const Matrix& dx, bool add, const Bf16Matrix& narrow_dx = {}) {
    NormBackwardArgs args;
    args.kind = c.norm;
    args.eps = c.norm_eps;
    args.x = x;
    args.weight = norm.weight.data();
    args.dy = d.wide, args.narrow_dy = d.narrow;
    args.dx = dx, args.narrow_dx = narrow_dx;
    args.add = add;
    args.dweight = gradients.values(norm.weight);
    args.dbias = gradients.values(norm.bias);
    ops.norm_backward(context, args);
  };
  auto sum = [&](const Matrix& x, const Matrix& y) {
    const Matrix out = context.scratch.matrix(x.rows, x.cols);
    copy(context, x, out);
    ops.scatter(context, {y, out, nullptr, true});
    return out;
  };

  Matrix dy = d_final;
  if (final_norm_) norm_gradient(final_norm_, tape.states.back(), dy, dy, false);
  const bool one_row = dy.rows != T;
  const Matrix whole = one_row_ ? context.scratch.matrix(T, C) : Matrix{};  // takes over from dy below the last layer
  // dy as bf16, where the layer above has made it so (and nobody adds to it in between).
  const bool rounds = ops.narrow_rows && C % 64 == 0 && !post && !sandwich && !above;
  const Bf16Matrix rounded = rounds ? context.scratch.bf16_matrix(T, C) : Bf16Matrix{};
  bool is_rounded = false;
  InputGradients out;
  std::vector<float> bias_gradient;
  if (gradients.wants(relative_values_)) bias_gradient.assign(relative_bias_.size(), 0);

  for (size_t i = 0; inputs && i < input.added.size(); ++i) out.added.push_back(context.scratch.matrix(int64_t(input.added[i].rows.size()), C));
  for (int64_t i = c.layers; i-- > tape.lowest;) {
    if (context.cancelled && context.cancelled->load(std::memory_order_relaxed)) fail("ABORTED", "the backward pass was cancelled");
    if (above) above(i + 1, dy);
    if (inputs && size_t(i) < input.added.size()) ops.gather(context, {dy, out.added[size_t(i)], input.added[size_t(i)].rows.data()});
    Arena::Scope scope(context.scratch);
    const Layer& layer = layers_[size_t(i)];
    const Matrix& x = tape.states[size_t(i - tape.lowest)];

    // Forward once more, as far as it was not kept and is looked at. pre: middle = x + o; sandwich: middle = x + norm(o); post: middle =
    // norm(x + o).
    const Tape::Kept* kept = tape.kept_of(i);
    const bool few = !layer.qkv;  // then nothing is kept
    const bool at_qkv = few || gradients.wants(*layer.qkv), at_output = gradients.wants(*layer.output);
    const Queries queries = few ? queries_of(pass, one_row) : Queries{};
    const int32_t* q_positions = few ? queries.positions.data() : pass.positions.data();
    const int32_t* q_offsets = few ? queries.offsets.data() : input.batch.offsets;
    const int32_t* q_starts = few ? queries.starts.data() : pass.zeros.data();
    const int64_t R = few ? int64_t(queries.rows.size()) : T;
    LayerState s;
    Matrix before_norm;
    if (kept) {
      s.middle = kept->middle, s.u = kept->u;
      if (kept->a.data) s.a = kept->a;
      if (kept->attended.data) s.attended = kept->attended;
      if (kept->m.data) s.m = kept->m;
      if (kept->g.data) s.g = kept->g;
    }
    const bool has_norm = !post && layer.attention_norm;
    const Weight& to_keys = few ? *layer.kv : *layer.qkv;
    if (!has_norm) s.a = x;
    else if (!s.a && (!kept || at_qkv)) s.a = normed_for(to_keys, layer.attention_norm, x);
    s.x_few = x;
    if (few) {
      s.x_few = context.scratch.matrix(R, C);
      ops.gather(context, {x, s.x_few, queries.rows.data()});
      s.a_few = has_norm ? normed_for(*layer.q, layer.attention_norm, s.x_few) : Rows(s.x_few);
      const Rows kv = made_for(narrow_only(pass, i), T, 2 * KV);
      project_into(s.a_few, *layer.q, layer.qkv_bias.data(), s.q = made_for(narrow_only(pass, i), R, Q));
      project_into(s.a, *layer.kv, layer.qkv_bias.empty() ? nullptr : layer.qkv_bias.data() + Q, kv);
      s.k = kv.columns(0, KV), s.v = kv.columns(KV, KV);
    } else {
      Rows qkv;
      if (kept) qkv = kept->qkv;
      else project_into(s.a, *layer.qkv, layer.qkv_bias.data(), qkv = made_for(narrow_only(pass, i), T, Q + 2 * KV));
      s.q = qkv.columns(0, Q), s.k = qkv.columns(Q, KV), s.v = qkv.columns(Q + KV, KV);
    }
    const bool narrow_mlp = narrow_inner(context, layer);
    if (s.u.narrow.data && !narrow_mlp) {
      s.u = context.scratch.matrix(T, kept->u.narrow.cols);
      ops.widen(context, {kept->u.narrow, s.u.wide});
    }
    // Queries and keys as attention reads them: in their place, unless they are wanted as they were before, or otherwise.
    const bool narrow = narrow_attention(context), in_place = narrow == bool(s.q.narrow.data), normed_heads = !layer.q_norm.empty();
    if (normed_heads || !in_place) s.raw_q = s.q, s.raw_k = s.k;
    if (kept && kept->turned) {
      s.q = kept->turned.columns(0, Q), s.k = kept->turned.columns(Q, KV);
    } else if (!kept || s.raw_q) {
      for (bool queries : {true, false}) {
        Rows& rows = queries ? s.q : s.k;
        const Rows before = rows;
        if (normed_heads || !in_place) rows = made_for(narrow, before.rows(), before.cols());
        if (normed_heads && !narrow) copy(context, before.wide, rows.wide);
        rotate(context, i, pass, narrow ? before : rows, queries, queries ? q_positions : pass.positions.data(), rows);
      }
      if (!in_place) {
        const Bf16Matrix values = context.scratch.bf16_matrix(T, KV);
        ops.narrow(context, {s.v.wide, values});
        s.v = values;
      }
    }
    AttentionArgs attention = attention_of(i, s.q, s.k, s.v, input.batch, q_offsets, q_starts);
    if (!s.attended && (!kept || at_output)) {
      s.attended = made_for(narrow && narrow_into(context, *layer.output), R, Q);
      attention.y = s.attended.wide, attention.narrow_y = s.attended.narrow;
      ops.attention(context, attention);
    }
    if (!kept) {
      s.o = project(s.attended, *layer.output, layer.output_bias.data());
      if (post) {
        before_norm = sum(s.x_few, s.o);
        s.middle = normed(layer.attention_norm, before_norm);
      } else {
        s.middle = sum(s.x_few, sandwich ? normed(layer.attention_post_norm, s.o) : s.o);
      }
    }
    if (!s.m && (!kept || gradients.wants(*layer.mlp_in))) s.m = post ? Rows(s.middle) : normed_for(*layer.mlp_in, layer.mlp_norm, s.middle);
    if (!kept) {
      s.u = made_for(narrow_mlp, R, layer.mlp_in->rows);
      project_into(s.m, *layer.mlp_in, layer.mlp_in_bias.data(), s.u);
    }
    if (!s.g && (post || sandwich || gradients.wants(*layer.mlp_out))) {
      s.g = made_for(narrow_mlp, R, c.intermediate);
      ops.activate(context, {c.activation, c.gated, s.u.wide, s.g.wide, s.u.narrow, s.g.narrow});
    }
    if (post || sandwich) s.d = project(s.g, *layer.mlp_out, layer.mlp_out_bias.data());

    // And back: dy is the gradient of the layer's output, and becomes that of its input.
    Matrix dd = dy;
    if (post) norm_gradient(layer.mlp_norm, sum(s.middle, s.d), dy, dy, false);
    if (sandwich) norm_gradient(layer.mlp_post_norm, s.d, dy, dd = context.scratch.matrix(R, C), false);
    const bool is_narrow = is_rounded && takes_narrow(context, *layer.mlp_out, C);
    const Rows ddr = is_narrow ? Rows(dd, rounded) : gradient_for(*layer.mlp_out, dd), dg = made_for(narrow_mlp, R, c.intermediate);
    gradients.linear(context, *layer.mlp_out, layer.mlp_out_bias, ddr, s.g);
    linear_input(context, gradients, *layer.mlp_out, ddr, dg);
    const Rows du = narrow_mlp ? made_for(true, R, layer.mlp_in->rows) : s.u;  // what was kept stays
    ops.activate_backward(context, {c.activation, c.gated, s.u.wide, dg.wide, du.wide, s.u.narrow, dg.narrow, du.narrow});
    gradients.linear(context, *layer.mlp_in, layer.mlp_in_bias, du, s.m);
    Bf16Matrix narrow_middle;
    if (post) {
      linear_input(context, gradients, *layer.mlp_in, du, dy, dy);
      norm_gradient(layer.attention_norm, before_norm, dy, dy, false);
    } else {
      const Rows dm = made_for(narrow_into(context, *layer.mlp_in), R, C);
      if (!sandwich && takes_narrow(context, *layer.output, C)) narrow_middle = context.scratch.bf16_matrix(R, C);
      linear_input(context, gradients, *layer.mlp_in, du, dm);
      norm_gradient(layer.mlp_norm, s.middle, dm, dy, true, narrow_middle);
    }
    Matrix d_out = dy;
    if (sandwich) norm_gradient(layer.attention_post_norm, s.o, dy, d_out = context.scratch.matrix(R, C), false);
    const Rows do_ = narrow_middle.data ? Rows(d_out, narrow_middle) : gradient_for(*layer.output, d_out),
               da = made_for(narrow && narrow_into(context, *layer.output), R, Q);
    gradients.linear(context, *layer.output, layer.output_bias, do_, s.attended);
    linear_input(context, gradients, *layer.output, do_, da);
    // bf16 for the product where nobody wants more: back through rotation and norm at once, in its place.
    const bool at_once = narrow && narrow_into(context, to_keys) && Q % 64 == 0 && KV % 64 == 0 && turns_narrow(pass, i) &&
                         !gradients.wants(layer.q_norm) && !gradients.wants(layer.k_norm);
    const Rows dqkv = few ? Rows{} : made_for(at_once, T, Q + 2 * KV), dq = few ? made_for(at_once, R, Q) : dqkv.columns(0, Q);
    const Rows dkv = few ? made_for(at_once, T, 2 * KV) : dqkv.columns(Q, 2 * KV), dk = dkv.columns(0, KV), dv = dkv.columns(KV, KV);
    AttentionBackwardArgs back;
    back.forward = attention;
    back.dy = da.wide, back.narrow_dy = da.narrow;
    back.dq = dq.wide, back.dk = dk.wide, back.dv = dv.wide;
    back.narrow_dq = dq.narrow, back.narrow_dk = dk.narrow, back.narrow_dv = dv.narrow;
    back.dbias = bias_gradient.empty() ? nullptr : bias_gradient.data();
    ops.attention_backward(context, back);
    const int rope = c.layer[size_t(i)].rope;
    for (bool at_queries : {true, false}) {
      const Rows& d = at_queries ? dq : dk;
      const Rows& raw = at_queries ? s.raw_q : s.raw_k;
      const int64_t heads = at_queries ? c.heads : c.kv_heads;
      const Values& weight = at_queries ? layer.q_norm : layer.k_norm;
      RopeArgs turn;
      turn.x = d.wide, turn.narrow_x = turn.narrow_y = d.narrow;
      turn.heads = int(heads), turn.head_dim = int(c.head_dim);
      if (rope >= 0) {
        const Angles& angles = pass.ropes[size_t(rope)];
        turn.cos = angles.cos, turn.sin = angles.sin, turn.half = angles.half;
        turn.positions = at_queries ? q_positions : pass.positions.data();
      }
      turn.inverse = true;
      if (at_once && !weight.empty()) {
        turn.norm_weight = weight.data(), turn.eps = c.norm_eps;
        turn.normed = raw.wide, turn.narrow_normed = raw.narrow;
        ops.rope(context, turn);
        continue;
      }
      if (rope >= 0) ops.rope(context, turn);
      if (!weight.empty()) {
        NormBackwardArgs args;
        args.kind = NormKind::rms;
        args.eps = c.norm_eps;
        args.x = raw.wide;
        if (raw.narrow.data) {
          args.x = context.scratch.matrix(raw.rows(), raw.cols());
          ops.widen(context, {raw.narrow, args.x});
        }
        args.weight = weight.data();
        args.dy = args.dx = d.wide;
        args.dweight = gradients.values(weight);
        args.groups = int(heads);
        ops.norm_backward(context, args);
      }
    }
    if (few) {
      gradients.linear(context, *layer.q, {}, dq, s.a_few);
      gradients.linear(context, *layer.kv, {}, dkv, s.a);
      if (float* bias = gradients.values(layer.qkv_bias)) {
        ops.linear_backward(context, {dq.wide, {}, {}, bias, false, dq.narrow});
        ops.linear_backward(context, {dkv.wide, {}, {}, bias + Q, false, dkv.narrow});
      }
    }
    const Rows dqkvr = few || at_once ? dqkv : gradient_for(*layer.qkv, dqkv.wide);
    if (!few) gradients.linear(context, *layer.qkv, layer.qkv_bias, dqkvr, s.a);
    const bool norm_trains = !post && (gradients.wants(layer.attention_norm.weight) || gradients.wants(layer.attention_norm.bias));
    const bool go_on = i > tape.lowest || inputs || trains_embeddings(gradients);
    if (!go_on && !norm_trains) break;
    if (few) {
      // The rows of queries get theirs beside those of keys and values, which all rows have.
      const Rows dn = has_norm ? made_for(narrow_into(context, *layer.kv), T, C) : Rows(whole), dn_few = context.scratch.matrix(R, C);
      linear_input(context, gradients, *layer.kv, dkv, dn);
      linear_input(context, gradients, *layer.q, dq, dn_few);
      if (has_norm) {
        norm_gradient(layer.attention_norm, s.x_few, dn_few, go_on ? dy : Matrix{}, true);
        norm_gradient(layer.attention_norm, x, dn, go_on ? whole : Matrix{}, false);
      } else {
        ops.scatter(context, {dn_few.wide, whole, queries.rows.data(), true});
      }
      if (go_on) ops.scatter(context, {dy, whole, queries.rows.data(), true});
      dy = whole, is_rounded = false;
    } else if (has_norm) {
      const Rows dn = made_for(narrow_into(context, *layer.qkv), T, C);
      linear_input(context, gradients, *layer.qkv, dqkvr, dn);
      norm_gradient(layer.attention_norm, x, dn, go_on ? dy : Matrix{}, true, go_on ? rounded : Bf16Matrix{});
      is_rounded = rounds;
    } else {
      linear_input(context, gradients, *layer.qkv, dqkvr, dy, dy);
      is_rounded = false;
    }
  }

  if (!bias_gradient.empty()) gather_relative_bias(bias_gradient, gradients.values(relative_values_));
  if (tape.lowest > 0 || (!inputs && !trains_embeddings(gradients))) return out;
  if (!input.batch.ids) {
    if (embedding_norm_) fail("INTERNAL", "a norm over given embeddings");
    out.embeddings = dy;
    return out;
  }
  if (embedding_norm_) {
    Arena::Scope scope(context.scratch);
    const Matrix before = context.scratch.matrix(T, C);
    embed(context, input.batch, pass, before, 0);
    for (const RowValues& rows : with_positions(context, input.replaced, pass.table_rows)) put_rows(context, rows, before, 0, T, false);
    norm_gradient(embedding_norm_, before, dy, dy, false);
  }
  std::vector<int32_t> ids(input.batch.ids, input.batch.ids + T);
  for (const RowValues& rows : input.replaced) {
    for (const int32_t row : rows.rows) ids[size_t(row)] = -1;
    if (!inputs) continue;
    out.replaced.push_back(context.scratch.matrix(int64_t(rows.rows.size()), C));
    ops.gather(context, {dy, out.replaced.back(), rows.rows.data()});
  }
  if (gradients.wants(token_embedding_)) ops.embed_backward(context, {ids.data(), c.embedding_scale, dy, gradients.table(token_embedding_)});
  if (gradients.wants(position_embedding_)) ops.embed_backward(context, {pass.table_rows.data(), 1, dy, gradients.table(position_embedding_)});
  if (gradients.wants(type_rows_)) ops.linear_backward(context, {dy, {}, {}, gradients.values(type_rows_)});
  return out;
}

}  // namespace conan
