// The operation table: every CPU backend of this machine against the plain-loop reference, over awkward shapes; and
// that a result depends neither on the number of threads nor on the other rows.
#include <algorithm>
#include <cstring>
#include <functional>

#include "base/thread_pool.h"
#include "check.h"
#include "merge/kernels.h"
#include "ops/backend.h"

using namespace conan;
using namespace conan::test;

namespace {

/// A matrix of random numbers with a stride wider than its rows; the gap holds NaN, so that reading it shows.
struct Owned {
  std::vector<float> values;
  Matrix m;
  Owned(int64_t rows, int64_t cols, unsigned seed, float spread = 1) : values(size_t(rows * (cols + 5)), NAN) {
    m = {values.data(), rows, cols, cols + 5};
    std::vector<float> r = random_floats(size_t(rows * cols), seed, spread);
    for (int64_t i = 0; i < rows; ++i) std::copy_n(r.data() + i * cols, cols, m.row(i));
  }
};

/// Largest difference over the size of the values (root mean square of the reference).
double difference(const Matrix& a, const Matrix& b) {
  double most = 0, squares = 0;
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t c = 0; c < a.cols; ++c) {
      const double d = std::fabs(double(a.row(i)[c]) - b.row(i)[c]);
      if (!(d <= most)) most = d;
      squares += double(b.row(i)[c]) * b.row(i)[c];
    }
  return most / (std::sqrt(squares / double(a.rows * a.cols)) + 1e-30);
}

bool equal(const Matrix& a, const Matrix& b) {
  for (int64_t i = 0; i < a.rows; ++i)
    if (std::memcmp(a.row(i), b.row(i), size_t(a.cols) * sizeof(float))) return false;
  return true;
}

void check_close(const Matrix& got, const Matrix& want, double tolerance, const std::string& what) {
  const double d = difference(got, want);
  check(d <= tolerance, text(what, ": difference ", d, " > ", tolerance));
}

TensorView view(const std::vector<float>& values, std::vector<int64_t> shape) { return {values.data(), Dtype::f32, std::move(shape)}; }

void linear_cases(const OperationTable& table, const OperationTable& reference) {
  struct Case {
    int64_t rows, k, n;
    bool gated, bias, residual;
    Activation activation;
  };
  const Case cases[] = {{1, 7, 5, false, false, false, Activation::none},      {3, 33, 70, false, true, false, Activation::gelu_erf},
                        {17, 64, 96, false, true, true, Activation::none},     {29, 130, 48, true, false, false, Activation::silu},
                        {64, 512, 100, false, true, false, Activation::relu},  {200, 65, 34, true, true, true, Activation::gelu_tanh},
                        {2, 1024, 33, false, false, true, Activation::tanh},   {5, 31, 20, false, true, false, Activation::quick_gelu},
                        {1100, 16, 300, false, true, false, Activation::none}, {300, 200, 280, true, true, false, Activation::silu},
                        {40, 24, 5, true, true, false, Activation::silu}};
  for (WeightFormat format : {WeightFormat::f32, WeightFormat::bf16, WeightFormat::f16, WeightFormat::i8})
    for (const Case& c : cases) {
      const std::string what = text(table.name, " linear ", weight_format_name(format), " ", c.rows, "x", c.k, "x", c.n);
      const int64_t rows_of_weight = c.gated ? 2 * c.n : c.n;
      std::vector<float> w = random_floats(size_t(rows_of_weight * c.k), 1, 0.2f), bias = random_floats(size_t(rows_of_weight), 2);
      Owned x(c.rows, c.k, 3), residual(c.rows, c.n, 4), want(c.rows, c.n, 5), got(c.rows, c.n, 6), alone(c.rows, c.n, 7);
      // In two parts, as query and key/value are.
      const int64_t split = c.gated ? c.n : c.n / 2;
      WeightSource source{"w", {view(w, {split, c.k}), {w.data() + split * c.k, Dtype::f32, {rows_of_weight - split, c.k}}}, c.gated};
      const int64_t apart = c.rows > 200 ? 97 : 1;  // rows that are looked at alone
      auto run = [&](const OperationTable& t, int threads, const Matrix& y, bool by_row) {
        Context context(t, threads);
        std::unique_ptr<Weight> weight = t.pack(context, source, format);
        for (int64_t i = 0; i < (by_row ? c.rows : 1); i += apart) {
          LinearArgs args;
          args.x = by_row ? x.m.slice(i, 1) : x.m;
          args.weight = weight.get();
          args.bias = c.bias ? bias.data() : nullptr;
          args.activation = c.activation;
          if (c.residual) args.residual = by_row ? residual.m.slice(i, 1) : residual.m;
          args.y = by_row ? y.slice(i, 1) : y;
          t.linear(context, args);
        }
      };
      run(reference, 1, want.m, false);
      run(table, 1, got.m, false);
      // bf16 products round the activations too; int8 rounding may fall on the other side now and then.
      check_close(got.m, want.m, format == WeightFormat::bf16 ? 4e-2 : format == WeightFormat::i8 ? 3e-2 : 2e-5, what);
      run(table, 3, alone.m, false);
      check(equal(got.m, alone.m), what + ": 3 threads differ from 1");
      run(table, 2, alone.m, true);
      for (int64_t i = 0; i < c.rows; i += apart)
        check(equal(got.m.slice(i, 1), alone.m.slice(i, 1)), what + ": rows alone differ from rows together");
    }
}

/// Rows of bf16 between two products: the same bits as rows of f32 that are rounded on their way.
void narrow_cases(const OperationTable& table) {
  if (!table.narrow_linear) return;
  for (const auto& [gated, activation] : {std::pair{false, Activation::gelu_erf}, {true, Activation::gelu_erf}, {true, Activation::silu}})
    for (const int64_t T : {1, 40, 300}) {
      const int64_t K = 70, inner = 192, N = 33, rows = gated ? 2 * inner : inner;
      Context context(table, 2);
      std::vector<float> w1 = random_floats(size_t(rows * K), 1, 0.2f), w2 = random_floats(size_t(N * inner), 2, 0.2f),
                         bias = random_floats(size_t(rows), 3);
      const auto in = table.pack(context, {"in", {view(w1, {rows, K})}, gated}, WeightFormat::bf16),
                 out = table.pack(context, {"out", {view(w2, {N, inner})}, false}, WeightFormat::bf16);
      Owned x(T, K, 4), wide(T, inner, 5), want(T, N, 6), got(T, N, 7);
      std::vector<uint16_t> words(size_t(T * inner));
      const Bf16Matrix narrow{words.data(), T, inner, inner};
      const auto run = [&](bool is_narrow, const Matrix& y) {
        LinearArgs first;
        first.x = x.m, first.weight = in.get(), first.bias = bias.data(), first.activation = activation;
        if (is_narrow) first.narrow_y = narrow;
        else first.y = wide.m;
        table.linear(context, first);
        LinearArgs second;
        second.weight = out.get(), second.residual = x.m.columns(0, N), second.y = y;
        if (is_narrow) second.narrow_x = narrow;
        else second.x = wide.m;
        table.linear(context, second);
      };
      run(false, want.m);
      run(true, got.m);
      check(equal(got.m, want.m), text(table.name, " linear by bf16 rows", gated ? " gated " : " ", int(activation), " ", T));
    }
}

/// So many rows that a GPU has tiles left for a part of its multiprocessors: each the same bits as among few.
void many_rows_cases(const OperationTable& table) {
  if (!table.narrow_rows) return;
  constexpr int64_t T = 2205, K = 64, N = 2304, few = 40;
  Context context(table, 2);
  const std::vector<float> w = random_floats(size_t(N * K), 1, 0.2f);
  const auto weight = table.pack(context, {"w", {view(w, {N, K})}, false}, WeightFormat::bf16);
  Owned x(T, K, 2), sum(T, N, 3), part(few, N, 4);
  std::vector<uint16_t> all(size_t(T * N)), some(size_t(few * N));
  const auto product = [&](const Matrix& from, uint16_t* narrow, const Matrix& added) {
    LinearArgs args;
    args.x = from, args.weight = weight.get(), args.narrow_y = {narrow, from.rows, N, N};
    table.linear(context, args);
    args.narrow_y = {}, args.residual = args.y = added;
    table.linear(context, args);
  };
  const Owned before(T, N, 3);
  product(x.m, all.data(), sum.m);
  for (const int64_t first : {int64_t(0), int64_t(1111), T - 133, T - few}) {
    for (int64_t r = 0; r < few; ++r) std::copy_n(before.m.row(first + r), N, part.m.row(r));
    product(x.m.slice(first, few), some.data(), part.m);
    check(std::memcmp(some.data(), &all[size_t(first * N)], some.size() * 2) == 0 && equal(sum.m.slice(first, few), part.m),
          text(table.name, " linear of many rows, from ", first, " on"));
  }
}

/// A product whose heads turn behind it: the same bits as one after the other, whatever the tile.
void linear_rope_cases(const OperationTable& table) {
  if (!table.linear_rope) return;
  for (const int64_t T : {1, 7, 128, 500})
    for (const auto& [heads, kv_heads, D, half] : {std::array<int, 4>{2, 1, 128, 64}, {0, 2, 128, 64}, {2, 1, 128, 32}, {4, 2, 64, 32}})
      for (const bool norm : {true, false}) {
        if (T == 500 && !(heads == 2 && half == 64 && norm)) continue;  // the largest tiles, for once: emulated they take long
        const int64_t K = T == 500 ? 512 : 128, Q = heads * D, KV = kv_heads * D, N = Q + 2 * KV;
        Context context(table, 1);
        const std::vector<float> w = random_floats(size_t(N * K), 1, 0.2f), bias = random_floats(size_t(N), 2),
                                 angles = random_floats(size_t(T * half), 3), q_norm = random_floats(size_t(D), 4),
                                 k_norm = random_floats(size_t(D), 5);
        const auto weight = table.pack(context, {"w", {view(w, {N, K})}, false}, WeightFormat::bf16);
        Owned x(T, K, 6);
        std::vector<int32_t> positions;
        for (int64_t t = 0; t < T; ++t) positions.push_back(int32_t(t * 7 % T));
        const auto run = [&](bool at_once) {
          const Bf16Matrix y = context.scratch.bf16_matrix(T, N);
          LinearArgs args;
          args.x = x.m, args.weight = weight.get(), args.bias = bias.data(), args.narrow_y = y;
          const auto side = [&](int count, const std::vector<float>& scale, int64_t first) {
            RopeArgs rope{{}, count, D, norm ? scale.data() : nullptr, 1e-6f, angles.data(), angles.data(), half, positions.data()};
            rope.narrow_x = rope.narrow_y = y.columns(first, count * D);
            return rope;
          };
          const RopeArgs queries = heads ? side(heads, q_norm, 0) : RopeArgs{}, keys = side(kv_heads, k_norm, Q);
          if (at_once) {
            table.linear_rope(context, args, queries, keys);
          } else {
            table.linear(context, args);
            if (heads) table.rope(context, queries);
            table.rope(context, keys);
          }
          finish(context);
          return y;
        };
        const Bf16Matrix got = run(true), want = run(false);
        bool same = true;
        for (int64_t t = 0; t < T; ++t) same &= std::equal(got.row(t), got.row(t) + N, want.row(t));
        check(same, text(table.name, " linear with rope ", T, " ", heads, "/", kv_heads, "x", D, norm ? " with norm" : ""));
      }
}

void unpack_cases(const OperationTable& table, const OperationTable& reference) {
  for (const auto& [T, C, channels] : {std::array<int64_t, 3>{1, 96, 3}, {37, 1536, 3}, {5, 10, 1}}) {
    std::vector<uint8_t> bytes;
    for (int64_t i = 0; i < T * C; ++i) bytes.push_back(uint8_t(i * 7919 / 13));
    const std::vector<float> numbers = random_floats(size_t(channels * 256), 1);
    Owned want(T, C, 2), got(T, C, 3);
    Context one(reference, 1), three(table, 3);
    reference.unpack(one, {bytes.data(), numbers.data(), channels, want.m});
    table.unpack(three, {bytes.data(), numbers.data(), channels, got.m});
    finish(three);
    check(equal(got.m, want.m), text(table.name, " unpack ", T, "x", C));
  }
}

void attention_cases(const OperationTable& table, const OperationTable& reference) {
  struct Case {
    std::vector<int> lengths;
    int heads, kv_heads, head_dim;
    int64_t left, right;
    bool bias, last_only;
  };
  const Case cases[] = {{{5, 1, 33}, 4, 4, 32, -1, -1, false, false},
                        {{14, 300, 2}, 4, 2, 64, -1, 0, false, false},
                        {{90, 257}, 2, 1, 20, 16, 16, false, false},
                        {{40, 7}, 3, 3, 24, -1, -1, true, false},
                        {{400, 16, 17}, 2, 2, 128, 63, 0, false, false},
                        {{31, 130}, 2, 2, 16, -1, 0, false, true},
                        {{600}, 1, 1, 8, 5, 0, false, false},
                        {{512, 65, 513}, 2, 1, 128, -1, 0, false, false},
                        {{64, 700, 511}, 2, 1, 64, -1, 0, false, false}};
  for (bool reduced : {false, true})
    for (const Case& c : cases) {
      std::vector<int32_t> kv{0}, q{0}, starts;
      for (int n : c.lengths) {
        kv.push_back(kv.back() + n);
        q.push_back(q.back() + (c.last_only ? 1 : n));
        starts.push_back(c.last_only ? n - 1 : 0);
      }
      const std::string what =
          text(table.name, " attention ", c.lengths[0], "+ ", c.heads, "/", c.kv_heads, "x", c.head_dim, " window ", c.left, " ", c.right);
      Owned queries(q.back(), c.heads * c.head_dim, 1), keys(kv.back(), c.kv_heads * c.head_dim, 2), values(kv.back(), c.kv_heads * c.head_dim, 3);
      Owned want(q.back(), c.heads * c.head_dim, 4), got(q.back(), c.heads * c.head_dim, 5);
      const int64_t reach = *std::max_element(c.lengths.begin(), c.lengths.end()) - 1;
      std::vector<float> bias = random_floats(size_t(c.heads * (2 * reach + 1) + 64), 6);
      AttentionArgs args;
      args.q = queries.m, args.k = keys.m, args.v = values.m;
      args.q_offsets = q.data(), args.kv_offsets = kv.data(), args.q_starts = starts.data();
      args.sequences = int(c.lengths.size()), args.heads = c.heads, args.kv_heads = c.kv_heads, args.head_dim = c.head_dim;
      args.scale = 1 / std::sqrt(float(c.head_dim));
      args.left = c.left, args.right = c.right;
      if (c.bias) args.bias = bias.data(), args.bias_reach = reach;
      args.reduced = reduced;
      Context one(reference, 1), three(table, 3);
      args.y = want.m;
      reference.attention(one, args);
      args.y = got.m;
      table.attention(three, args);
      check_close(got.m, want.m, reduced ? 6e-2 : 2e-5, what);
      // The last sequence alone.
      const int b = args.sequences - 1;
      Owned alone(q.back(), c.heads * c.head_dim, 7);
      AttentionArgs single = args;
      single.q_offsets += b, single.kv_offsets += b, single.q_starts += b;
      single.sequences = 1;
      single.y = alone.m;
      Context context(table, 1);
      table.attention(context, single);
      const int64_t first = q[size_t(b)], count = q.back() - first;
      check(equal(alone.m.slice(first, count), got.m.slice(first, count)), what + ": a sequence alone differs from one in a batch");
    }
}

/// Rows of bf16 that norm and rope hand over to attention, and attention on: the same bits as rows of f32 that are rounded.
void narrow_row_cases(const OperationTable& table) {
  if (!table.narrow_rows) return;
  Context context(table, 2);
  for (const auto& [heads, kv_heads, D] : {std::array<int, 3>{4, 2, 128}, {3, 3, 40}, {6, 1, 64}}) {
    const int32_t offsets[] = {0, 7, 300, 301}, starts[] = {0, 0, 0};
    const int64_t T = offsets[3], Q = heads * D, KV = kv_heads * D;
    const std::string what = text(table.name, " bf16 rows of ", heads, "/", kv_heads, "x", D, " ");
    Owned qkv(T, Q + 2 * KV, 1), y(T, Q, 2), wide(T, Q, 3);
    const Bf16Matrix narrow = context.scratch.bf16_matrix(T, Q + 2 * KV), expected = context.scratch.bf16_matrix(T, Q),
                     got = context.scratch.bf16_matrix(T, Q);
    const auto same = [&](const Bf16Matrix& a, const Matrix& want, const std::string& of) {
      table.narrow(context, {want, expected.columns(0, want.cols)});
      finish(context);
      bool equal = true;
      for (int64_t t = 0; t < T; ++t) equal &= std::equal(a.row(t), a.row(t) + a.cols, expected.row(t));
      check(equal, what + of);
    };
    std::vector<float> weight = random_floats(size_t(Q), 4), cos = random_floats(size_t(T * D / 2), 5), sin = random_floats(size_t(T * D / 2), 6);
    std::vector<int32_t> positions;
    for (int64_t t = 0; t < T; ++t) positions.push_back(int32_t(t));
    NormArgs norm{NormKind::rms, 1e-6f, qkv.m.columns(0, Q), weight.data(), nullptr, {}, {}, got, y.m};
    table.norm(context, norm);
    check(equal(y.m, norm.x), what + "norm's copy");
    norm.narrow_y = {}, norm.y = wide.m, norm.copy = {};
    table.norm(context, norm);
    same(got, wide.m, "norm");
    // Queries turn with a norm, keys without; values are rounded. And what is bf16 already turns in its place.
    const Bf16Matrix turned = context.scratch.bf16_matrix(T, Q + 2 * KV);
    Owned rounded(T, Q + 2 * KV, 7);
    table.narrow(context, {qkv.m, turned});
    table.widen(context, {turned, rounded.m});
    for (const bool queries : {true, false}) {
      const int64_t first = queries ? 0 : Q, width = queries ? Q : KV;
      RopeArgs rope{qkv.m.columns(first, width),
                    queries ? heads : kv_heads,
                    D,
                    queries ? weight.data() : nullptr,
                    1e-6f,
                    cos.data(),
                    sin.data(),
                    D / 2 - 4,
                    positions.data()};
      rope.narrow_y = narrow.columns(first, width);
      table.rope(context, rope);
      rope.narrow_y = {};
      table.rope(context, rope);
      same(narrow.columns(first, width), qkv.m.columns(first, width), queries ? "rope with norm" : "rope");
      rope.x = rounded.m.columns(first, width);
      table.rope(context, rope);
      rope.x = {}, rope.narrow_x = rope.narrow_y = turned.columns(first, width);
      table.rope(context, rope);
      same(turned.columns(first, width), rounded.m.columns(first, width), queries ? "rope in place with norm" : "rope in place");
    }
    // And back, through rotation and norm at once or one after the other.
    for (const int half : {0, D / 2 - 4, D / 2}) {
      Owned slope(T, Q, 8, 0.5f), raw(T, Q, 9), back(T, Q, 10), at_once(T, Q, 11);
      RopeArgs rope{slope.m, heads, D, weight.data(), 1e-6f, half > 0 ? cos.data() : nullptr, sin.data(), half, positions.data(), true};
      rope.normed = raw.m;
      rope.narrow_y = got;
      table.rope(context, rope);
      table.widen(context, {got, at_once.m});
      rope.norm_weight = nullptr, rope.normed = {}, rope.narrow_y = {};
      if (half > 0) table.rope(context, rope);
      NormBackwardArgs norm_back;
      norm_back.kind = NormKind::rms, norm_back.eps = 1e-6f, norm_back.x = raw.m, norm_back.weight = weight.data();
      norm_back.dy = slope.m, norm_back.dx = back.m, norm_back.groups = heads;
      table.norm_backward(context, norm_back);
      finish(context);
      bool close = true;  // to half of bf16's last place
      for (int64_t t = 0; t < T; ++t)
        for (int64_t c = 0; c < Q; ++c) close &= std::fabs(at_once.m.row(t)[c] - back.m.row(t)[c]) <= std::fabs(back.m.row(t)[c]) / 256 + 1e-5f;
      check(close, text(what, "back through rope and norm, ", half));
      // All of it bf16, in the place of the gradient.
      const Bf16Matrix slopes = context.scratch.bf16_matrix(T, Q), before = context.scratch.bf16_matrix(T, Q);
      table.narrow(context, {y.m, before});
      table.narrow(context, {slope.m, slopes});
      table.widen(context, {before, raw.m});
      table.widen(context, {slopes, slope.m});
      rope.x = slope.m, rope.norm_weight = weight.data(), rope.normed = raw.m, rope.narrow_y = got;
      table.rope(context, rope);
      table.widen(context, {got, at_once.m});
      rope.x = rope.normed = {}, rope.narrow_normed = before, rope.narrow_x = rope.narrow_y = slopes;
      table.rope(context, rope);
      same(slopes, at_once.m, "back through rope and norm in place");
    }
    // Gradients of norm: of rows of bf16, and with the result once more as bf16.
    for (const int64_t C : {Q, int64_t(1088), int64_t(2112), int64_t(4160), int64_t(8256)}) {
      const int64_t rows = 9;
      Owned x(rows, C, 12), slope(rows, C, 13), dx(rows, C, 14), want(rows, C, 14);
      const std::vector<float> scale = random_floats(size_t(C), 15);
      std::vector<float> dweight(scale.size()), wanted(scale.size());
      const Bf16Matrix slopes = context.scratch.bf16_matrix(rows, C), again = context.scratch.bf16_matrix(rows, C),
                       expected = context.scratch.bf16_matrix(rows, C);
      table.narrow(context, {slope.m, slopes});
      table.widen(context, {slopes, slope.m});
      NormBackwardArgs back;
      back.kind = NormKind::rms, back.x = x.m, back.weight = scale.data(), back.add = true;
      back.dy = slope.m, back.dx = want.m, back.dweight = wanted.data();
      table.norm_backward(context, back);
      back.dy = {}, back.narrow_dy = slopes, back.dx = dx.m, back.narrow_dx = again, back.dweight = dweight.data();
      table.norm_backward(context, back);
      table.narrow(context, {dx.m, expected});
      finish(context);
      check(equal(dx.m, want.m) && dweight == wanted, text(what, "norm back from bf16, ", C));
      check(std::equal(again.data, again.data + rows * C, expected.data), text(what, "norm back, as bf16 too, ", C));
    }
    table.narrow(context, {qkv.m.columns(Q + KV, KV), narrow.columns(Q + KV, KV)});
    AttentionArgs args;
    args.q = qkv.m.columns(0, Q), args.k = qkv.m.columns(Q, KV), args.v = qkv.m.columns(Q + KV, KV), args.y = y.m;
    args.q_offsets = args.kv_offsets = offsets, args.q_starts = starts;
    args.sequences = 3, args.heads = heads, args.kv_heads = kv_heads, args.head_dim = D;
    args.scale = 0.1f, args.right = 0, args.reduced = true;
    table.attention(context, args);
    args.narrow_q = narrow.columns(0, Q), args.narrow_k = narrow.columns(Q, KV), args.narrow_v = narrow.columns(Q + KV, KV);
    args.q = args.k = args.v = {}, args.y = wide.m;
    table.attention(context, args);
    check(equal(wide.m, y.m), what + "attention");
    args.y = {}, args.narrow_y = got;
    table.attention(context, args);
    same(got, y.m, "attention's results");
    AttentionBackwardArgs back;
    Owned gradients(T, Q + 2 * KV, 16);
    const Bf16Matrix rows = context.scratch.bf16_matrix(T, Q + 2 * KV);
    back.forward = args;
    back.narrow_dy = got;
    back.dq = gradients.m.columns(0, Q), back.dk = gradients.m.columns(Q, KV), back.dv = gradients.m.columns(Q + KV, KV);
    table.attention_backward(context, back);
    back.dq = back.dk = back.dv = {};
    back.narrow_dq = rows.columns(0, Q), back.narrow_dk = rows.columns(Q, KV), back.narrow_dv = rows.columns(Q + KV, KV);
    table.attention_backward(context, back);
    same(back.narrow_dq, gradients.m.columns(0, Q), "attention's gradients by queries");
    same(back.narrow_dk, gradients.m.columns(Q, KV), "attention's gradients by keys");
    same(back.narrow_dv, gradients.m.columns(Q + KV, KV), "attention's gradients by values");
  }
}

/// Parts of different ranks, some more than one block has columns or multiplies at a time.
void low_rank_cases(const OperationTable& table, const OperationTable& reference) {
  if (!table.low_rank_backward || &table == &reference) return;
  struct Case {
    int64_t rows, k;
    std::vector<std::array<int64_t, 2>> parts;  // outputs, rank
  };
  for (const auto& [T, K, parts] : {Case{1, 64, {{{8, 1}}}}, Case{37, 192, {{{520, 16}}, {{64, 4}}, {{1032, 20}}}}, Case{700, 128, {{{64, 32}}}},
                                    Case{130, 64, {{{40, 8}}, {{8, 32}}, {{24, 16}}, {{16, 3}}, {{72, 17}}}}}) {
    Context context(table, 1), plain(reference, 1);
    int64_t N = 0;
    for (const auto& part : parts) N += part[0];
    const std::string what = text(table.name, " low_rank_backward ", T, "x", K, "x", N);
    // Columns of a longer row, as those of queries and keys are.
    Owned dy(T, N + 8, 1), x(T, K, 2);
    const Bf16Matrix slopes = context.scratch.bf16_matrix(T, N + 8), inputs = context.scratch.bf16_matrix(T, K);
    table.narrow(context, {dy.m, slopes});
    table.narrow(context, {x.m, inputs});
    finish(context);
    LowRankBackwardArgs got{slopes.columns(8, N), inputs, {}}, want = got;
    std::vector<std::vector<float>> memory;
    const auto values = [&](int64_t count, unsigned seed) { return memory.emplace_back(random_floats(size_t(count), seed)).data(); };
    memory.reserve(6 * parts.size());
    int64_t first = 0;
    for (const auto& [rows, rank] : parts) {
      const float *a = values(rank * K, 3), *b = values(rows * rank, 4);
      for (LowRankBackwardArgs* args : {&got, &want})
        args->parts.push_back({first, rows, rank, 0.5f, a, b, values(rank * K, 5), values(rows * rank, 6)});
      first += rows;
    }
    reference.low_rank_backward(plain, want);
    table.low_rank_backward(context, got);
    finish(context);
    for (size_t i = 0; i < parts.size(); ++i) {
      const auto [rows, rank] = parts[i];
      const std::string which = text(what, ", part ", i);
      check_close({got.parts[i].da, rank, K, K}, {want.parts[i].da, rank, K, K}, 3e-2, which + ", a");
      check_close({got.parts[i].db, rows, rank, rank}, {want.parts[i].db, rows, rank, rank}, 3e-2, which + ", b");
    }
  }
}

/// A recorded pass does with other inputs what the same operations do when they are asked for one by one.
void record_cases(const OperationTable& table) {
  if (!table.record) return;
  Context context(table, 1);
  const std::string what = text(table.name, " record");
  const int64_t T = 20, C = 64, V = 50, N = 70;
  const std::vector<float> words = random_floats(size_t(V * C), 1), scale = random_floats(size_t(C), 2), w = random_floats(size_t(N * C), 3);
  const Resident resident = reside(context, words);
  const TensorView rows = view(words, {V, C});
  const auto weight = table.pack(context, {"w", {view(w, {N, C})}, false}, WeightFormat::bf16);
  std::vector<int32_t> ids(static_cast<size_t>(T));
  const auto fill = [&](int32_t step) {
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = (int32_t(i) * step + 3) % int32_t(V);
  };
  const Matrix x = context.scratch.matrix(T, C), y = context.scratch.matrix(T, N);
  const auto body = [&] {
    EmbedArgs embed;
    embed.ids = ids.data(), embed.table = &rows, embed.y = x;
    table.embed(context, embed);
    NormArgs norm;
    const std::vector<float> own = scale;  // taken as it is while it is recorded
    norm.kind = NormKind::rms, norm.x = norm.y = x, norm.weight = own.data();
    table.norm(context, norm);
    LinearArgs linear;
    linear.x = x, linear.weight = weight.get(), linear.y = y;
    table.linear(context, linear);
  };
  Owned want(T, N, 4), got(T, N, 5);
  fill(7);
  const auto recording = table.record(context, {{ids.data(), ids.size() * sizeof(int32_t)}}, body);
  check(bool(recording), what);
  for (const int32_t step : {11, 3, 7}) {
    fill(step);
    body();
    copy(context, y, want.m);
    clear(context, y);
    table.replay(context, *recording, {ids.data()});
    fill(1);  // the inputs may change at once
    copy(context, y, got.m);
    finish(context);
    check(equal(got.m, want.m), text(what, ", ids by ", step));
  }
  check(!table.record(context, {}, [&] { copy(context, y, got.m); }), what + " of results that go to the host");
  check(!table.record(context, {}, [&] { finish(context); }), what + " of what waits");
  fill(7);
  body();
  copy(context, y, got.m);
  finish(context);
  check(equal(got.m, want.m), what + " and on as before");
}

void contrast_cases(const OperationTable& table, const OperationTable& reference) {
  Context context(table, 2), plain(reference, 1);
  const int64_t N = 9;
  for (const int64_t M : {5, 40, 700})
    for (const float margin : {-1.f, 0.f, 0.4f}) {
      const std::string what = text(table.name, " contrast ", M, ", margin ", margin);
      Owned scores(N, M, 1), want(N, M, 2), got(N, M, 3);
      std::vector<int32_t> offsets{0}, positives;
      for (int64_t i = 0; i < N; ++i) {  // none, one, some
        for (int64_t p = 0; p < i % 4; ++p) positives.push_back(int32_t((i * 7 + p * 3) % M));
        offsets.push_back(int32_t(positives.size()));
      }
      std::vector<double> losses(static_cast<size_t>(N)), expected(losses);
      ContrastArgs args{scores.m, want.m, offsets.data(), positives.data(), 0.3f, margin, 1.5f, expected.data()};
      reference.contrast(plain, args);
      args.y = got.m, args.losses = losses.data();
      table.contrast(context, args);
      finish(context);
      check_close(got.m, want.m, 1e-4, what);
      for (size_t i = 0; i < losses.size(); ++i) check(std::fabs(losses[i] - expected[i]) < 1e-5 * (1 + expected[i]), text(what, ", loss ", i));
      if (&table != &reference) continue;
      // The gradient is that of the losses' sum.
      const auto sum = [&] {
        reference.contrast(plain, args);
        double out = 0;
        for (double loss : losses) out += loss;
        return out;
      };
      for (int64_t i = 1; i < N; i += 2) {
        float& at = scores.m.row(i)[(i * 7) % M];
        const float before = at, slope = want.m.row(i)[(i * 7) % M];
        const float step = 1.f / 1024;
        at = before + step;
        const double above = sum();
        at = before - step;
        const double below = sum();
        at = before;
        if (margin < 0) check(std::fabs(1.5 * (above - below) / (2 * double(step)) - slope) < 2e-3, text(what, ", slope of row ", i));
      }
    }
  Owned x(7, 30, 4);
  clear(context, x.m);
  finish(context);
  for (int64_t i = 0; i < 7; ++i) check(std::count(x.m.row(i), x.m.row(i) + 30, 0.f) == 30, text(table.name, " clear"));
}

void row_cases(const OperationTable& table, const OperationTable& reference) {
  Context context(table, 2), plain(reference, 1);
  for (int64_t C : {5, 16, 20, 384, 1001, 1100, 2560, 4100}) {
    const std::string what = text(table.name, " C=", C, " ");
    const int64_t T = 37;
    Owned x(T, C, 1), residual(T, C, 2), want(T, C, 3), got(T, C, 4);
    std::vector<float> weight = random_floats(size_t(C), 5), bias = random_floats(size_t(C), 6);
    for (NormKind kind : {NormKind::layer, NormKind::rms}) {
      NormArgs args;
      args.kind = kind;
      args.x = x.m;
      args.weight = weight.data();
      if (kind == NormKind::layer) args.bias = bias.data();
      if (C % 2) args.residual = residual.m;
      args.y = want.m;
      reference.norm(plain, args);
      args.y = got.m;
      table.norm(context, args);
      check_close(got.m, want.m, 1e-5, what + "norm");
      NormBackwardArgs back;
      back.kind = kind, back.x = x.m, back.weight = weight.data(), back.dy = residual.m;
      back.dx = want.m;
      reference.norm_backward(plain, back);
      back.dx = got.m;
      table.norm_backward(context, back);
      check_close(got.m, want.m, 2e-5, what + "norm back");
    }
    for (Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
      std::vector<float> values = random_floats(size_t(50 * C), 7);
      std::vector<uint16_t> halves;
      for (float v : values) halves.push_back(dtype == Dtype::bf16 ? f32_to_bf16(v) : f32_to_f16(v));
      TensorView words{dtype == Dtype::f32 ? static_cast<const void*>(values.data()) : halves.data(), dtype, {50, C}};
      std::vector<int32_t> ids, positions;
      for (int t = 0; t < T; ++t) ids.push_back((t * 7) % 50), positions.push_back(t);
      EmbedArgs args;
      args.ids = ids.data(), args.table = &words, args.scale = 1.5f;
      args.positions = positions.data(), args.position_table = &words, args.type_row = bias.data();
      args.y = want.m;
      reference.embed(plain, args);
      args.y = got.m;
      table.embed(context, args);
      check_close(got.m, want.m, 1e-6, what + "embed " + dtype_name(dtype));
      if (!table.reside) continue;
      // The device's own copies are taken, whatever becomes of the host's memory; and no longer once they are given back.
      {
        const Resident copies[] = {reside(context, words.data, words.bytes()), reside(context, ids), reside(context, bias)};
        EmbedArgs alone = args;
        alone.position_table = nullptr, alone.positions = nullptr, alone.type_row = nullptr;
        Owned words_want(T, C, 12), words_got(T, C, 13);
        alone.y = words_want.m;
        reference.embed(plain, alone);
        alone.y = words_got.m;
        table.embed(context, alone);
        check_close(words_got.m, words_want.m, 1e-6, what + "embed words alone " + dtype_name(dtype));
        std::vector<char> bytes(words.bytes());
        std::memcpy(bytes.data(), words.data, bytes.size());
        std::memset(const_cast<void*>(words.data), 0, bytes.size());
        std::fill(ids.begin(), ids.end(), 0);
        table.embed(context, args);
        check_close(got.m, want.m, 1e-6, what + "embed of residents " + dtype_name(dtype));
        std::memcpy(const_cast<void*>(words.data), bytes.data(), bytes.size());
      }
      args.y = want.m;
      reference.embed(plain, args);
      args.y = got.m;
      table.embed(context, args);
      check_close(got.m, want.m, 1e-6, what + "embed once they are given back " + dtype_name(dtype));
    }
    {
      std::vector<int32_t> rows, places;
      for (int i = 0; i < 20; ++i) rows.push_back((i * 11) % int(T));
      for (int i = 0; i < 10; ++i) places.push_back(3 * i + 1);
      const std::vector<float> taps = random_floats(20, 10);
      Owned picked(10, C, 8), expected(10, C, 9);
      reference.gather(plain, {x.m, expected.m, rows.data(), 2, taps.data()});
      table.gather(context, {x.m, picked.m, rows.data(), 2, taps.data()});
      check_close(picked.m, expected.m, 1e-5, what + "gather of two");
      for (bool add : {false, true}) {
        reference.scatter(plain, {expected.m, want.m, places.data(), add});
        table.scatter(context, {expected.m, got.m, places.data(), add});
        check_close(got.m, want.m, 1e-5, text(what, "scatter ", add));
        reference.scatter(plain, {expected.m, want.m, nullptr, add});
        table.scatter(context, {expected.m, got.m, nullptr, add});
        check_close(got.m, want.m, 1e-5, text(what, "scatter of all ", add));
      }
    }
    {
      Arena memory(table);
      const Bf16Matrix narrow = memory.bf16_matrix(T, C), expected = memory.bf16_matrix(T, C);
      reference.narrow(plain, {x.m, expected});
      table.narrow(context, {x.m, narrow});
      finish(context);
      check(std::equal(narrow.data, narrow.data + T * C, expected.data), what + "narrow");
      reference.widen(plain, {expected, want.m});
      table.widen(context, {narrow, got.m});
      check(equal(got.m, want.m), what + "widen");
    }
    const int32_t offsets[] = {0, 1, 20, 37};
    for (Pooling mode : {Pooling::cls, Pooling::last, Pooling::mean, Pooling::mean_sqrt_len, Pooling::max, Pooling::weighted_mean}) {
      Owned pooled(3, C, 8), expected(3, C, 9);
      reference.pool(plain, {x.m, expected.m, offsets, mode});
      table.pool(context, {x.m, pooled.m, offsets, mode});
      check_close(pooled.m, expected.m, 1e-5, text(what, "pool ", int(mode)));
      reference.normalize(plain, {expected.m});
      table.normalize(context, {pooled.m});
      check_close(pooled.m, expected.m, 1e-5, text(what, "normalize ", int(mode)));
    }
  }
  for (int D : {8, 20, 64, 128})
    for (bool with_norm : {false, true}) {
      const int H = 3, T = 11, half = D / 2 - (D == 64 ? 8 : 0);
      Owned a(T, H * D, 1), b(T, H * D, 1);
      std::vector<float> cos = random_floats(size_t(T * half), 2), sin = random_floats(size_t(T * half), 3), weight = random_floats(size_t(D), 4);
      std::vector<int32_t> positions;
      for (int t = 0; t < T; ++t) positions.push_back((t * 5) % T);
      RopeArgs args{a.m, H, D, with_norm ? weight.data() : nullptr, 1e-6f, cos.data(), sin.data(), half, positions.data()};
      reference.rope(plain, args);
      args.x = b.m;
      table.rope(context, args);
      check_close(b.m, a.m, 1e-5, text(table.name, " rope ", D, with_norm ? " with norm" : ""));
    }
}

// ---- backward

double inner(const Matrix& a, const Matrix& b) {
  double sum = 0;
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t c = 0; c < a.cols; ++c) sum += double(a.row(i)[c]) * b.row(i)[c];
  return sum;
}

/// `gradient` of value() by x against central differences along a random direction, in a matrix at once.
void check_slope(const Matrix& x, const Matrix& gradient, const std::function<double()>& value, const std::string& what, double tolerance = 2e-3) {
  Owned direction(x.rows, x.cols, 91);
  const float step = 5e-3f;
  auto shifted = [&](float by) {
    for (int64_t i = 0; i < x.rows; ++i)
      for (int64_t c = 0; c < x.cols; ++c) x.row(i)[c] += by * direction.m.row(i)[c];
    return value();
  };
  const double up = shifted(step), down = shifted(-2 * step);
  shifted(step);
  const double numeric = (up - down) / (2 * step), analytic = inner(gradient, direction.m);
  const double size = std::sqrt(inner(gradient, gradient)) + 1e-6;
  check(std::fabs(numeric - analytic) <= tolerance * size, text(what, ": ", analytic, ", by differences ", numeric));
}

Matrix row_of(std::vector<float>& values) { return {values.data(), 1, int64_t(values.size()), int64_t(values.size())}; }

/// What rounding to bf16 on the way may cost: a share of the whole, since single entries may be small sums of large terms.
void check_near(const Matrix& got, const Matrix& want, const std::string& what) {
  double off = 0;
  for (int64_t i = 0; i < want.rows; ++i)
    for (int64_t c = 0; c < want.cols; ++c) off += std::pow(double(got.row(i)[c]) - want.row(i)[c], 2);
  const double share = std::sqrt(off / inner(want, want));
  check(share <= 1e-2, text(what, ": ", share, " of it is wrong"));
}

/// Two steps of the optimizer, and the size of the gradients.
void optimizer_cases(const OperationTable& table, const OperationTable& reference) {
  Context context(table, 3), single(table, 1), plain(reference, 1);
  for (int64_t count : {1, 1000, 100001}) {
    const std::string what = text(table.name, " adamw ", count);
    std::vector<std::vector<float>> want, got, alone;
    for (uint32_t k = 0; k < 4; ++k) want.push_back(random_floats(size_t(count), 20 + k));
    for (float& x : want[3]) x = std::fabs(x);
    got = alone = want;
    double size = 0, found = 0, found_alone = 0;
    reference.squares(plain, {{want[1], want[0]}, &size});
    table.squares(context, {{got[1], got[0]}, &found});
    table.squares(single, {{got[1], got[0]}, &found_alone});
    finish(context), finish(single);
    check(std::fabs(found - size) <= 1e-12 * size && found == found_alone, text(table.name, " squares ", count, ": ", found, " for ", size));
    for (int step = 0; step < 2; ++step)
      for (const auto& [own, values] : {std::pair{&plain, &want}, {&context, &got}, {&single, &alone}}) {
        AdamWArgs args{(*values)[0].data(), (*values)[1].data(), (*values)[2].data(), (*values)[3].data(), count};
        args.scale = 0.5f, args.decay = 0.99f, args.rate = 0.1f, args.correction = 0.7f, args.beta2 = 0.99f, args.epsilon = 1e-6f;
        own->ops.adamw(*own, args);
        finish(*own);
      }
    for (size_t k = 0; k < 4; ++k) check_close(row_of(got[k]), row_of(want[k]), 1e-5, text(what, " ", k));
    check(got == alone, what + ": 3 threads differ from 1");
  }
}

/// The last pass of merges writes the bytes that the CPU writes.
void merge_cases(const OperationTable& table) {
  if (!table.merge) return;
  constexpr int64_t room = 3 * 16384 + 32;
  // Magnitudes from 2^-125 to 2^60, numbers that are the base's, and zeros of both signs.
  std::vector<std::vector<uint16_t>> models(8, std::vector<uint16_t>(room));
  for (unsigned m = 0; m < models.size(); ++m) {
    std::vector<float> values = random_floats(room, 300);
    const std::vector<float> own = random_floats(room, 301 + m);
    for (size_t i = 0; i < values.size(); ++i) {
      if (m > 0 && i % 7 != 3) values[i] += own[i] * 0.1f;
      if (i % 11 == 5) values[i] = std::ldexp(own[i], int(i / 11 % 186) - 125);
      if (i % 13 == 6) values[i] = own[i] > 0 ? 0.f : -0.f;
    }
    std::transform(values.begin(), values.end(), models[m].begin(), f32_to_bf16);
  }
  constexpr uint32_t all = 0x7fffffff, none[7] = {};
  const double coefficients[] = {0.3, -0.2, 0.6, 0.1, 0.25, 0.7, -0.4}, weights[] = {0.3, -0.2, 0.6, 0.1, 0.2, 0.5, 0.7},
               huge[] = {1e38, 2e38, -3e38, 4e37};
  const uint32_t from[] = {0x3d000000, 0x3d800000, 0x3c800000, 0x3d400000, 0x3d100000, 0, 0x3d800000}, open[] = {all, all, all, all, all, all, all},
                 to[] = {0x3e800000, 0x3e000000, 0x3d800000, 0x3e000000, 0x3e100000, 0, all};
  struct Case {
    int parents;
    bool base, elect, normalize;
    const uint32_t *from, *to;
    const double* weights;
    int64_t first, count;
  };
  const Case cases[] = {{4, true, true, true, from, open, weights, 0, room},      {4, true, true, false, from, to, weights, 0, 16384},
                        {3, true, true, true, nullptr, nullptr, weights, 32, 64}, {3, false, false, false, nullptr, nullptr, weights, 0, 4096},
                        {1, true, true, true, from, open, weights, 1, 4064},      {2, true, false, false, from, to, weights, 3, 32},
                        {7, true, true, true, from, to, weights, 0, 8192},        {7, true, false, false, none, open, weights, 5, 8192},
                        {4, true, true, true, from, open, huge, 0, 8192}};
  for (const Case& c : cases) {
    const std::string what = text(table.name, " merge of ", c.parents, " by ", c.count, c.from ? c.to == open ? ", large" : ", between" : "");
    const uint16_t* x[7] = {};
    for (int p = 0; p < c.parents; ++p) x[p] = models[size_t(p + 1)].data() + c.first;
    std::vector<uint16_t> want(size_t(c.count)), got(size_t(c.count), 0x7fc1);
    std::vector<double> squares(8), sums(8);
    const uint16_t* base = c.base ? models[0].data() + c.first : nullptr;
    merge::Stream stream{c.parents, base, x, coefficients, c.weights, c.from, c.to, c.elect, c.normalize, 0.8, want.data(), squares.data()};
    merge::kernels_portable.stream_bf16(stream, c.count);
    squares[size_t(c.parents)] = double(stream.conflicts);
    Context context(table, 1);
    MergeArgs args;
    args.parents = c.parents, args.base = base, args.x = x, args.coefficients = coefficients, args.weights = c.weights;
    args.from = c.from, args.to = c.to, args.elect = c.elect, args.normalize = c.normalize, args.scale = 0.8;
    args.out = got.data(), args.sums = sums.data(), args.count = c.count;
    table.merge(context, args);
    finish(context);
    int64_t wrong = 0;
    for (size_t i = 0; i < want.size(); ++i) wrong += want[i] != got[i];
    check(wrong == 0, text(what, ": ", wrong, " numbers differ"));
    for (size_t p = 0; p <= size_t(c.parents); ++p)
      check(std::fabs(sums[p] - squares[p]) <= 1e-5 * squares[p], text(what, ", sum ", p, ": ", sums[p], " for ", squares[p]));
  }
}

/// Each gradient of the reference by finite differences, and of the other tables against the reference.
void backward_cases(const OperationTable& table, const OperationTable& reference) {
  const bool is_reference = &table == &reference;
  Context context(table, 3), single(table, 1), plain(reference, 1);
  for (int64_t C : {5, 48, 200}) {
    const int64_t T = 41;
    Owned x(T, C, 1), dy(T, C, 2), y(T, C, 3), want(T, C, 4), got(T, C, 4), other(T, C, 4);
    std::vector<float> weight = random_floats(size_t(C), 5), bias = random_floats(size_t(C), 6);
    for (NormKind kind : {NormKind::layer, NormKind::rms}) {
      const std::string what = text(table.name, " norm_backward ", C, kind == NormKind::rms ? " rms" : " layer");
      auto run = [&](Context& on, const Matrix& dx, std::vector<float>& dweight, std::vector<float>& dbias, bool add) {
        dweight.assign(size_t(C), 0), dbias.assign(size_t(C), 0);
        NormBackwardArgs args{kind, 1e-5f, x.m, weight.data(), dy.m, dx, add, dweight.data(), dbias.data(), 1};
        on.ops.norm_backward(on, args);
      };
      std::vector<float> dw, db, dw2, db2;
      for (bool add : {true, false}) {
        run(plain, want.m, dw, db, add);
        run(context, got.m, dw2, db2, add);
        check_close(got.m, want.m, 2e-5, what);
        check_close(row_of(dw2), row_of(dw), 2e-5, what + " weight");
        check_close(row_of(db2), row_of(db), 2e-5, what + " bias");
      }
      run(single, other.m, dw, db, false);
      check(equal(other.m, got.m) && dw == dw2 && db == db2, what + ": 3 threads differ from 1");
      if (!is_reference) continue;
      auto value = [&] {
        NormArgs args;
        args.kind = kind, args.x = x.m, args.weight = weight.data(), args.bias = bias.data(), args.y = y.m;
        reference.norm(plain, args);
        return inner(y.m, dy.m);
      };
      check_slope(x.m, want.m, value, what + " by x");
      check_slope(row_of(weight), row_of(dw), value, what + " by weight");
      check_slope(row_of(bias), row_of(db), value, what + " by bias");
    }
    for (Activation activation : {Activation::none, Activation::gelu_erf, Activation::gelu_tanh, Activation::quick_gelu, Activation::relu,
                                  Activation::silu, Activation::tanh})
      for (bool gated : {false, true}) {
        const std::string what = text(table.name, " activate_backward ", int(activation), gated ? " gated " : " ", C);
        Owned in(T, gated ? 2 * C : C, 7, 2), expected(T, in.m.cols, 8), found(T, in.m.cols, 9);
        reference.activate(plain, {activation, gated, in.m, want.m});
        table.activate(context, {activation, gated, in.m, got.m});
        check_close(got.m, want.m, 1e-5, what + " forward");
        reference.activate_backward(plain, {activation, gated, in.m, dy.m, expected.m});
        table.activate_backward(context, {activation, gated, in.m, dy.m, found.m});
        check_close(found.m, expected.m, 1e-5, what);
        if (is_reference && activation != Activation::relu)
          check_slope(
              in.m, expected.m,
              [&] {
                return reference.activate(plain, {activation, gated, in.m, y.m}), inner(y.m, dy.m);
              },
              what);
      }
    for (const int64_t N : {33, 16}) {
      const std::string what = text(table.name, " linear_backward ", C, " x ", N);
      Owned out(T, N, 10), dw(N, C, 11), dw2(N, C, 11), dw3(N, C, 11);
      std::vector<float> db(static_cast<size_t>(N), 1), db2 = db, db3 = db;
      reference.linear_backward(plain, {out.m, x.m, dw.m, db.data()});
      table.linear_backward(context, {out.m, x.m, dw2.m, db2.data()});
      table.linear_backward(single, {out.m, x.m, dw3.m, db3.data()});
      check_close(dw2.m, dw.m, 1e-5, what);
      check_close(row_of(db2), row_of(db), 1e-5, what + " bias");
      check(equal(dw2.m, dw3.m) && db2 == db3, what + ": 3 threads differ from 1");
      Owned dw4(N, C, 11), dw5(C, N, 12), dw6(C, N, 12);
      table.linear_backward(context, {out.m, x.m, dw4.m, nullptr, true});
      check_close(dw4.m, dw.m, 2e-2, what + " reduced");
      reference.linear_backward(plain, {x.m, out.m, dw5.m, nullptr});  // the wide side first
      table.linear_backward(context, {x.m, out.m, dw6.m, nullptr, true});
      check_close(dw6.m, dw5.m, 2e-2, what + " reduced, turned over");
    }
    const int32_t offsets[] = {0, 1, 20, 41};
    for (Pooling mode : {Pooling::cls, Pooling::last, Pooling::mean, Pooling::mean_sqrt_len, Pooling::max, Pooling::weighted_mean}) {
      Owned pooled(3, C, 12), dpooled(3, C, 13), normal(3, C, 14), dnormal(3, C, 13);
      table.pool_backward(context, {x.m, dpooled.m, got.m, offsets, mode});
      if (mode != Pooling::max)
        check_slope(
            x.m, got.m,
            [&] {
              return reference.pool(plain, {x.m, pooled.m, offsets, mode}), inner(pooled.m, dpooled.m);
            },
            text(table.name, " pool_backward ", int(mode)));
      reference.pool(plain, {x.m, pooled.m, offsets, mode});
      table.normalize_backward(context, {pooled.m, dnormal.m});
      auto value = [&] {
        for (int64_t b = 0; b < 3; ++b) std::copy_n(pooled.m.row(b), C, normal.m.row(b));
        reference.normalize(plain, {normal.m});
        return inner(normal.m, dpooled.m);
      };
      check_slope(pooled.m, dnormal.m, value, text(table.name, " normalize_backward ", int(mode)), 1e-2);
    }
  }
  struct Case {
    std::vector<int> lengths;
    int heads, kv_heads, head_dim;
    int64_t left, right;
    bool bias;
    int queries = 0;  // the last ones of each sequence; 0: all
  };
  const Case cases[] = {{{5, 1, 19}, 4, 4, 20, -1, -1, false},       {{14, 50}, 4, 2, 32, -1, 0, false},    {{40, 7}, 2, 1, 8, 6, 6, false},
                        {{23, 9}, 3, 3, 24, -1, -1, true},           {{140, 33}, 2, 1, 40, -1, 0, false},   {{150, 3}, 1, 1, 16, 20, 0, false},
                        {{14, 50}, 4, 2, 32, -1, 0, false, 1},       {{23, 9}, 3, 3, 24, -1, -1, true, 2},  {{40, 17}, 2, 1, 64, 6, 6, false, 17},
                        {{70, 65}, 2, 1, 128, -1, 0, false},         {{66}, 1, 1, 80, 9, 30, true},         {{64, 30}, 4, 2, 128, -1, 0, false},
                        {{10, 64, 65, 33}, 8, 2, 64, -1, -1, false}, {{60, 2}, 5, 1, 128, 9, 30, false, 40}};
  for (const Case& c : cases) {
    std::vector<int32_t> offsets{0}, q_offsets{0}, starts;
    for (int n : c.lengths) {
      const int queries = c.queries ? std::min(c.queries, n) : n;
      offsets.push_back(offsets.back() + n);
      q_offsets.push_back(q_offsets.back() + queries);
      starts.push_back(n - queries);
    }
    const int64_t T = offsets.back(), Tq = q_offsets.back(), Q = int64_t(c.heads) * c.head_dim, KV = int64_t(c.kv_heads) * c.head_dim;
    const int64_t reach = *std::max_element(c.lengths.begin(), c.lengths.end()) - 1;
    Owned q(Tq, Q, 1), k(T, KV, 2), v(T, KV, 3), dy(Tq, Q, 4), y(Tq, Q, 5);
    std::vector<float> bias = random_floats(size_t(c.heads * (2 * reach + 1) + 64), 6);
    AttentionArgs forward;
    forward.q = q.m, forward.k = k.m, forward.v = v.m, forward.y = y.m;
    forward.q_offsets = q_offsets.data(), forward.kv_offsets = offsets.data(), forward.q_starts = starts.data();
    forward.sequences = int(c.lengths.size()), forward.heads = c.heads, forward.kv_heads = c.kv_heads, forward.head_dim = c.head_dim;
    forward.scale = 0.3f, forward.left = c.left, forward.right = c.right;
    if (c.bias) forward.bias = bias.data(), forward.bias_reach = reach;
    const std::string what = text(table.name, " attention_backward ", c.heads, "/", c.kv_heads, "x", c.head_dim);
    struct Out {
      Owned dq, dk, dv;
      std::vector<float> dbias;
    };
    auto run = [&](Context& on) {
      Out out{Owned(Tq, Q, 7), Owned(T, KV, 8), Owned(T, KV, 9), std::vector<float>(bias.size())};
      on.ops.attention_backward(on, {forward, dy.m, out.dq.m, out.dk.m, out.dv.m, c.bias ? out.dbias.data() : nullptr});
      return out;
    };
    Out want = run(plain), got = run(context), alone = run(single);
    check_close(got.dq.m, want.dq.m, 2e-5, what + " q");
    check_close(got.dk.m, want.dk.m, 2e-5, what + " k");
    check_close(got.dv.m, want.dv.m, 2e-5, what + " v");
    if (c.bias) check_close(row_of(got.dbias), row_of(want.dbias), 2e-5, what + " bias");
    check(equal(got.dq.m, alone.dq.m) && equal(got.dk.m, alone.dk.m) && equal(got.dv.m, alone.dv.m), what + ": 3 threads differ from 1");
    forward.reduced = true;
    Out coarse = run(context);
    check_near(coarse.dq.m, want.dq.m, what + " q reduced");
    check_near(coarse.dk.m, want.dk.m, what + " k reduced");
    check_near(coarse.dv.m, want.dv.m, what + " v reduced");
    if (c.bias) check_near(row_of(coarse.dbias), row_of(want.dbias), what + " bias reduced");
    forward.reduced = false;
    if (!is_reference) continue;
    auto value = [&] { return reference.attention(plain, forward), inner(y.m, dy.m); };
    check_slope(q.m, want.dq.m, value, what + " by q");
    check_slope(k.m, want.dk.m, value, what + " by k");
    check_slope(v.m, want.dv.m, value, what + " by v");
    if (c.bias) check_slope(row_of(bias), row_of(want.dbias), value, what + " by bias");
  }
  for (int half : {4, 10}) {
    Owned x(9, 40, 1), same(9, 40, 1);
    std::vector<float> cos, sin;
    std::vector<int32_t> positions;
    for (int t = 0; t < 9; ++t) {
      positions.push_back(t);
      for (int i = 0; i < half; ++i) cos.push_back(std::cos(float(t) / float(i + 1))), sin.push_back(std::sin(float(t) / float(i + 1)));
    }
    RopeArgs args{x.m, 2, 20, nullptr, 1e-6f, cos.data(), sin.data(), half, positions.data()};
    table.rope(context, args);
    args.inverse = true;
    table.rope(context, args);
    check_close(x.m, same.m, 1e-5, text(table.name, " rope back and forth"));
  }
  {
    std::vector<float> w = random_floats(20 * 7, 1), w2 = random_floats(20 * 7, 2);
    Owned x(3, 7, 3), y(3, 20, 4), z(3, 20, 5);
    std::unique_ptr<Weight> one = table.pack(context, {"w", {view(w, {20, 7})}, false}, WeightFormat::f32);
    std::unique_ptr<Weight> two = table.pack(context, {"w", {view(w2, {20, 7})}, false}, WeightFormat::f32);
    table.repack(context, {"w", {view(w2, {20, 7})}, false}, *one);
    for (auto [weight, out] : {std::pair{one.get(), y.m}, std::pair{two.get(), z.m}}) {
      LinearArgs args;
      args.x = x.m, args.weight = weight, args.y = out;
      table.linear(context, args);
    }
    check(equal(y.m, z.m), text(table.name, " repack"));
  }
  for (WeightFormat format : {WeightFormat::f32, WeightFormat::bf16, WeightFormat::f16, WeightFormat::i8})
    for (const auto& [N, K] : {std::pair<int64_t, int64_t>{20, 7}, {64, 64}, {256, 129}, {97, 200}, {1, 3}}) {
      const std::string what = text(table.name, " pack_transposed ", weight_format_name(format), " ", N, "x", K);
      std::vector<float> w = random_floats(size_t(N * K), 1), w2 = random_floats(size_t(N * K), 2), turned(size_t(N * K));
      // Multiples of 1/128 with 127/128 in every row and column: every format holds them as they are, whichever way they lie.
      for (float& value : w) value = std::clamp(std::nearbyint(value * 60), -127.f, 127.f) / 128;
      for (int64_t i = 0; i < std::max(N, K); ++i) w[size_t(i % N * K + i % K)] = 127.f / 128;
      for (int64_t n = 0; n < N; ++n)
        for (int64_t k = 0; k < K; ++k) turned[size_t(k * N + n)] = w[size_t(n * K + k)];
      Owned x(5, N, 3), y(5, K, 4), z(5, K, 5);
      std::unique_ptr<Weight> one = table.pack(context, {"w", {view(w, {N, K})}, false}, format), into;
      std::unique_ptr<Weight> other = table.pack(context, {"w", {view(w2, {N, K})}, false}, format);
      table.pack_transposed(context, *other, into);
      table.pack_transposed(context, *one, into);  // into what is there
      std::unique_ptr<Weight> want = table.pack(context, {"w", {view(turned, {K, N})}, false}, format);
      for (auto [weight, out] : {std::pair{into.get(), y.m}, std::pair{want.get(), z.m}}) {
        LinearArgs args;
        args.x = x.m, args.weight = weight, args.y = out;
        table.linear(context, args);
      }
      check(equal(y.m, z.m), what);
    }
}

void pack_cases(const OperationTable& table) {
  Context context(table, 2);
  std::vector<float> w(6 * 4, 1.f);
  w[13] = NAN;
  check_error("WEIGHT_NOT_FINITE", text(table.name, " pack"), [&] { table.pack(context, {"w", {view(w, {6, 4})}, false}, WeightFormat::f32); });
  if (!table.packs_changes) return;
  // Two parts, of which the second changes; the same product as with the sum.
  for (const auto& [K, second, rank] : {std::array<int64_t, 3>{70, 40, 3}, {300, 100, 20}, {70, 40, 40}}) {
    const int64_t first = 24, T = 5;
    std::vector<float> one = random_floats(size_t(first * K), 1), two = random_floats(size_t(second * K), 2), sum = two,
                       a = random_floats(size_t(rank * K), 3), b = random_floats(size_t(second * rank), 4);
    for (int64_t n = 0; n < second; ++n)
      for (int64_t k = 0; k < K; ++k)
        for (int64_t r = 0; r < rank; ++r) sum[size_t(n * K + k)] += 0.5f * b[size_t(n * rank + r)] * a[size_t(r * K + k)];
    for (const WeightFormat format : {WeightFormat::f32, WeightFormat::bf16, WeightFormat::f16, WeightFormat::i8})
      for (const bool again : {false, true}) {
        Owned x(T, K, 5), want(T, first + second, 6), got(T, first + second, 7);
        const WeightSource changed{"w", {view(one, {first, K}), view(two, {second, K})}, false, {{}, {a.data(), b.data(), rank, 0.5f}}},
            plain{"w", {view(one, {first, K}), view(sum, {second, K})}, false};
        const auto product = [&](const Weight& weight, const Matrix& y) {
          LinearArgs args;
          args.x = x.m, args.weight = &weight, args.y = y;
          table.linear(context, args);
        };
        const auto weight = table.pack(context, again ? plain : changed, format);
        if (again) table.repack(context, changed, *weight);
        product(*weight, got.m);
        product(*table.pack(context, plain, format), want.m);
        check_close(got.m, want.m, format == WeightFormat::f32 ? 1e-5 : 1e-2,
                    text(table.name, " changes of rank ", rank, " packed in ", weight_format_name(format)));
      }
  }
}

/// Memory grows to what the largest pass takes, and not to the sum of all that were ever larger than those before.
void arena_cases(const OperationTable& table) {
  Arena arena(table);
  const auto bytes_of = [](size_t pass, size_t i) { return pass * 8 * (1000 + 700 * (i % 3)); };
  size_t most = 0;
  for (size_t pass = 1; pass <= 200; ++pass) {
    const Arena::Scope scope(arena);
    std::vector<std::span<char>> taken;
    size_t total = 0;
    for (size_t i = 0; i < 8; ++i) {
      const size_t bytes = bytes_of(pass, i);
      taken.emplace_back(static_cast<char*>(arena.take(bytes)), bytes);
      std::fill(taken.back().begin(), taken.back().end(), char(i));
      total += bytes;
    }
    most = std::max(most, total);
    bool apart = true;
    for (size_t i = 0; i < taken.size(); ++i) apart = apart && std::all_of(taken[i].begin(), taken[i].end(), [&](char c) { return c == char(i); });
    check(apart, text(table.name, " memory of pass ", pass));
  }
  check(arena.bytes() < 3 * most && arena.moves() < 40,
        text(table.name, " memory: ", arena.bytes(), " bytes for ", most, ", moved ", arena.moves(), " times"));
  const int64_t moves = arena.moves();
  for (size_t pass = 200; pass > 0; --pass) {
    const Arena::Scope scope(arena);
    for (size_t i = 0; i < 8; ++i) arena.take(bytes_of(pass, 7 - i));
  }
  check(arena.moves() - moves <= 1 && arena.bytes() < 2 * most,
        text(table.name, " memory of passes that shrink: ", arena.bytes(), " bytes for ", most));
}

}  // namespace

/// Arguments: a table and the groups wanted of it; default: all of all.
int main(int count, char** arguments) {
  const std::vector<std::string> wanted(arguments + std::min(count, 2), arguments + count);
  const auto wants = [&](const char* group) { return wanted.empty() || std::find(wanted.begin(), wanted.end(), group) != wanted.end(); };
  auto tables = cpu_backends();
  const OperationTable& reference = *tables[0];
  for (const GpuReport& gpu : gpu_reports()) {
    if (gpu.device.empty()) std::printf("no GPU is checked: %s\n", gpu.name.c_str());
    else tables.push_back(&backend(gpu.device));
  }
  if (count > 1) std::erase_if(tables, [&](const OperationTable* table) { return std::string(table->name) != arguments[1]; });
  check(!tables.empty(), text("a table named ", count > 1 ? arguments[1] : ""));
  for (const OperationTable* table : tables) {
    require(*table);
    require_training(*table);
    if (wants("linear")) linear_cases(*table, reference);
    if (wants("packed")) pack_cases(*table), low_rank_cases(*table, reference);
    if (wants("narrow")) narrow_cases(*table), many_rows_cases(*table), linear_rope_cases(*table), narrow_row_cases(*table);
    if (wants("attention")) attention_cases(*table, reference);
    if (wants("rows"))
      row_cases(*table, reference), unpack_cases(*table, reference), optimizer_cases(*table, reference), contrast_cases(*table, reference),
          record_cases(*table), arena_cases(*table);
    if (wants("merge")) merge_cases(*table);
    if (wants("backward")) backward_cases(*table, reference);
    std::printf("%s checked\n", table->name);
  }
  OperationTable empty;
  empty.name = "empty";
  check_error("BACKEND_UNSUPPORTED", "an empty table", [&] { require(empty); });
  return report("ops_test");
}
