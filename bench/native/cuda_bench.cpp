// Products and attention on a GPU by shape, forward and backward, beside the rate of its tensor cores as measured with its vendor's library.
// A line of JSON a measurement goes to the file that CONAN_BENCH_RESULTS names, where it names one.
// Usage: cuda_bench [device, default cuda] [TFLOP/s of bf16 products to compare with, default 790] [part of the names of lines wanted]
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>

#include "../../test/native/check.h"
#include "ops/backend.h"

using namespace conan;

static double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// Median seconds of a run, in fives so that waiting for the last counts little, after two fives to warm up.
static double median(Context& context, const std::function<void()>& run) {
  std::vector<double> times;
  for (int i = 0; i < 7; ++i) {
    finish(context);
    const double start = seconds();
    for (int k = 0; k < 5; ++k) run();
    finish(context);
    if (i >= 2) times.push_back((seconds() - start) / 5);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

static Matrix filled(Context& context, int64_t rows, int64_t cols, unsigned seed = 1) {
  const Matrix m = context.scratch.contiguous(rows, cols);
  finish(context);
  const std::vector<float> values = test::random_floats(size_t(rows * cols), seed);
  std::copy(values.begin(), values.end(), m.data);
  return m;
}

static Bf16Matrix narrowed(Context& context, const Matrix& m) {
  const Bf16Matrix out = context.scratch.bf16_matrix(m.rows, m.cols);
  context.ops.narrow(context, {m, out});
  return out;
}

/// `work`: of a run, in units of 10^12.
static void keep(const std::string& name, double seconds, double work, const char* unit) {
  const char* path = std::getenv("CONAN_BENCH_RESULTS");
  if (!path) return;
  std::FILE* file = std::fopen(path, "a");
  if (!file) fail("FILE_IO", path, ": cannot be added to");
  std::fprintf(file, "{\"bench\": \"cuda_bench\", \"name\": \"%s\", \"seconds\": %.9f, \"rate\": %.3f, \"unit\": \"%s\"}\n", name.c_str(), seconds,
               work / seconds, unit);
  std::fclose(file);
}

int main(int count, char** arguments) {
  const std::string device = count > 1 ? arguments[1] : "cuda";
  const double ceiling = (count > 2 ? std::atof(arguments[2]) : 790) * 1e12;
  const std::string wanted = count > 3 ? arguments[3] : "";
  try {
    const OperationTable& table = backend(device);
    Context context(table, 1);
    std::printf("%s\n%-34s %10s %10s %8s\n", gpu_reports()[0].name.c_str(), "", "ms", "TFLOP/s", "share");
    const auto line = [&](const std::string& name, double flops, const std::function<void()>& run) {
      if (name.find(wanted) == std::string::npos) return;
      const double time = median(context, run);
      std::printf("%-34s %10.3f %10.1f %7.1f%%\n", name.c_str(), time * 1e3, flops / time / 1e12, 100 * flops / time / ceiling);
      std::fflush(stdout);
      keep(name, time, flops / 1e12, "TFLOP/s");
    };
    // Whether lines of that beginning are wanted: what they need takes time to make.
    const auto about = [&](const std::string& beginning) { return wanted.substr(0, beginning.size()) == beginning.substr(0, wanted.size()); };
    for (const auto& [rows, in, out] :
         std::vector<std::array<int64_t, 3>>{{16, 4096, 4096}, {512, 1024, 3072}, {8192, 1024, 3072}, {8192, 4096, 4096}, {16384, 4096, 12288}}) {
      const std::string shape = text(rows, "x", in, "x", out);
      if (!(about("linear") || about("dy^T x")) ||
          (wanted.find('x', 6) != std::string::npos && wanted.find(text(rows, "x", in)) == std::string::npos))
        continue;
      Arena::Scope scope(context.scratch);
      const std::vector<float> values = test::random_floats(size_t(in * out), 2, 0.02f);
      const Matrix x = filled(context, rows, in), y = context.scratch.contiguous(rows, out);
      const double flops = 2.0 * double(rows * in * out);
      for (WeightFormat format : {WeightFormat::bf16, WeightFormat::i8, WeightFormat::f32}) {
        if (format == WeightFormat::f32 && rows * in * out > 1LL << 36) continue;
        const auto weight = table.pack(context, {"w", {{values.data(), Dtype::f32, {out, in}}}, false}, format);
        LinearArgs args;
        args.x = x, args.weight = weight.get(), args.y = y;
        line(text("linear ", weight_format_name(format), " ", shape), flops, [&] { table.linear(context, args); });
        if (format != WeightFormat::bf16) continue;
        args.narrow_x = narrowed(context, x), args.narrow_y = context.scratch.bf16_matrix(rows, out);
        args.x = args.y = {};
        line(text("linear bf16 rows ", shape), flops, [&] { table.linear(context, args); });
      }
      const Matrix dw = filled(context, out, in);
      line(text("dy^T x bfloat16 ", shape), flops, [&] { table.linear_backward(context, {y, x, dw, nullptr, true}); });
    }
    if (table.narrow_rows && about("layer")) {
      // Products of one layer of Qwen3-VL-2B's shape, with what follows them.
      Arena::Scope scope(context.scratch);
      constexpr int64_t rows = 32768, hidden = 2048, inner = 6144;
      const Bf16Matrix x = narrowed(context, filled(context, rows, inner)), y = context.scratch.bf16_matrix(rows, inner);
      const Matrix sum = filled(context, rows, hidden);
      // Texts of 512 tokens, whose heads turn by the same angles.
      constexpr int heads = 16, kv_heads = 8, D = 128;
      const Matrix norm = filled(context, 1, D), cos = filled(context, 512, D / 2), sin = filled(context, 512, D / 2);
      std::vector<int32_t> positions;
      for (int64_t t = 0; t < rows; ++t) positions.push_back(int32_t(t % 512));
      const Resident resident = reside(context, positions);
      const auto turned = [&](int count, int64_t first) {
        RopeArgs rope{{}, count, D, norm.data, 1e-6f, cos.data, sin.data, D / 2, positions.data()};
        rope.narrow_x = rope.narrow_y = y.columns(first * D, count * D);
        return rope;
      };
      const auto product = [&](const char* name, int64_t in, int64_t out, bool gated, bool added, bool turns = false) {
        if (std::string(name).find(wanted) == std::string::npos) return;
        const std::vector<float> values = test::random_floats(size_t(in * out), 2, 0.02f);
        std::vector<TensorView> parts;
        for (int64_t i = 0, half = gated ? out / 2 : out; i < out; i += half) parts.push_back({values.data() + i * in, Dtype::f32, {half, in}});
        const auto weight = table.pack(context, {name, parts, gated}, WeightFormat::bf16);
        LinearArgs args;
        args.narrow_x = x.columns(0, in), args.weight = weight.get();
        if (gated) args.activation = Activation::silu;
        if (added) args.residual = args.y = sum;
        else args.narrow_y = y.columns(0, gated ? out / 2 : out);
        line(name, 2.0 * double(rows * in * out), [&] {
          if (turns) table.linear_rope(context, args, turned(heads, 0), turned(kv_heads, heads));
          else table.linear(context, args);
        });
      };
      product("layer: queries, keys, values", hidden, 2 * hidden, false, false);
      if (table.linear_rope) product("layer: the same, turned", hidden, 2 * hidden, false, false, true);
      product("layer: x += heads", hidden, hidden, false, true);
      product("layer: gate and up", hidden, 2 * inner, true, false);
      product("layer: x += down", inner, hidden, false, true);
    }
    for (const auto& [length, sequences] : std::vector<std::array<int64_t, 2>>{{32, 1024}, {64, 256}, {128, 64}, {512, 16}, {2048, 4}, {8192, 1}}) {
      if (!about("attention")) break;
      Arena::Scope scope(context.scratch);
      constexpr int heads = 16, kv_heads = 8, D = 128;
      const int64_t T = length * sequences;
      std::vector<int32_t> offsets(1), starts(size_t(sequences), 0);
      for (int64_t b = 0; b < sequences; ++b) offsets.push_back(int32_t((b + 1) * length));
      AttentionArgs args;
      args.q = filled(context, T, heads * D), args.k = filled(context, T, kv_heads * D), args.v = filled(context, T, kv_heads * D);
      args.y = context.scratch.contiguous(T, heads * D);
      args.q_offsets = args.kv_offsets = offsets.data(), args.q_starts = starts.data();
      args.sequences = int(sequences), args.heads = heads, args.kv_heads = kv_heads, args.head_dim = D;
      args.scale = 0.088f, args.right = 0;
      const double flops = 2.0 * double(T * length) * heads * D;
      for (bool reduced : {true, false}) {
        args.reduced = reduced;
        line(text("attention ", reduced ? "bf16 " : "float32 ", length, " x ", sequences), flops, [&] { table.attention(context, args); });
      }
      args.reduced = true;
      AttentionArgs narrow = args;
      if (table.narrow_rows) {
        narrow.narrow_q = narrowed(context, args.q), narrow.narrow_k = narrowed(context, args.k), narrow.narrow_v = narrowed(context, args.v);
        narrow.narrow_y = context.scratch.bf16_matrix(T, heads * D);
        narrow.q = narrow.k = narrow.v = narrow.y = {};
        line(text("attention bf16 rows ", length, " x ", sequences), flops, [&] { table.attention(context, narrow); });
      }
      AttentionBackwardArgs back;
      back.forward = args, back.dy = filled(context, T, heads * D), back.dq = context.scratch.contiguous(T, heads * D);
      back.dk = context.scratch.contiguous(T, kv_heads * D), back.dv = context.scratch.contiguous(T, kv_heads * D);
      // Five products where forward has two, counted as everybody counts them; of longer sequences nine are computed.
      line(text("attention back ", length, " x ", sequences), 2.5 * flops, [&] { table.attention_backward(context, back); });
      if (!table.narrow_rows) continue;
      back.forward = narrow, back.narrow_dy = narrowed(context, back.dy), back.narrow_dq = context.scratch.bf16_matrix(T, heads * D);
      back.narrow_dk = context.scratch.bf16_matrix(T, kv_heads * D), back.narrow_dv = context.scratch.bf16_matrix(T, kv_heads * D);
      back.dy = back.dq = back.dk = back.dv = {};
      line(text("attention back bf16 rows ", length, " x ", sequences), 2.5 * flops, [&] { table.attention_backward(context, back); });
    }
    if (about("merge")) {
      // Four parents of a base that lie on the device: what the bus is not asked for.
      Arena::Scope scope(context.scratch);
      constexpr int64_t count = int64_t(1) << 28;
      Matrix all[6];  // two numbers a float
      for (Matrix& m : all) m = context.scratch.contiguous(1, count / 2);
      constexpr int64_t own = 1 << 20;    // numbers of a model's, which come again and again
      for (unsigned i = 0; i < 5; ++i) {  // the sixth is written
        const Bf16Matrix some = narrowed(context, filled(context, 1, own, i));
        const Matrix pairs{reinterpret_cast<float*>(some.data), 1, own / 2, own / 2};
        for (int64_t at = 0; at < all[i].cols; at += pairs.cols) table.scatter(context, {pairs, all[i].columns(at, pairs.cols), nullptr, false});
      }
      const auto words = [](const Matrix& m) { return reinterpret_cast<uint16_t*>(m.data); };
      const uint16_t* x[] = {words(all[1]), words(all[2]), words(all[3]), words(all[4])};
      const double weights[] = {0.3, -0.2, 0.6, 0.1};
      // TIES keeps about half of the differences, which are random numbers of size sqrt(2): those of 1 and more.
      constexpr uint32_t one = 0x3f800000, all_bits = 0x7fffffff;
      const uint32_t from[] = {one, one, one, one}, to[] = {all_bits, all_bits, all_bits, all_bits};
      MergeArgs args;
      args.parents = 4, args.base = words(all[0]), args.x = x, args.coefficients = args.weights = weights, args.out = words(all[5]);
      args.sums = static_cast<double*>(context.scratch.take(5 * sizeof(double))), args.count = count;
      for (const bool elect : {false, true}) {
        args.elect = args.normalize = elect;
        args.from = elect ? from : nullptr, args.to = elect ? to : nullptr;
        const std::string name = elect ? "merge of 4, TIES" : "merge of 4, task arithmetic";
        if (name.find(wanted) == std::string::npos) continue;
        const double time = median(context, [&] { table.merge(context, args); }), bytes = 6.0 * 2 * double(count);
        std::printf("%-34s %10.3f %10.2f TB/s\n", name.c_str(), time * 1e3, bytes / time / 1e12);
        keep(name, time, bytes / 1e12, "TB/s");
      }
    }
  } catch (const Error& error) {
    std::printf("%s: %s\n", error.code().c_str(), error.what());
    return 1;
  }
}
