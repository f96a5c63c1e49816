// The one operation table. Every operation the models need is a function pointer here, implemented once per backend;
// cpu/reference.cpp is plain loops and defines what is correct. A null entry means "unsupported": require() fails at
// load with the operation's name. Shapes: B sequences, T tokens, H heads, D head size, C channels.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/tensor.h"

namespace conan {

enum class Activation { none, gelu_erf, gelu_tanh, quick_gelu, relu, silu, tanh };
enum class NormKind { layer, rms };
enum class Pooling { cls, last, mean, mean_sqrt_len, max, weighted_mean };

/// How a weight matrix is held and multiplied. f32, f16: f32 arithmetic. bf16: bf16 x bf16 products with f32 sums where
/// the CPU is fast at it, else widened to f32. i8: int8 weights with one scale per output channel, activations
/// quantised per row on the fly, int32 sums.
enum class WeightFormat { f32, bf16, f16, i8 };
const char* weight_format_name(WeightFormat format);
/// Whether products in this format have 8 bits of mantissa or fewer, so that what surrounds them may be coarser too.
bool is_reduced(WeightFormat format);

struct Context;
struct OperationTable;

/// A device's own copy of host memory; given back with the last of these.
using Resident = std::shared_ptr<const void>;

/// A matrix on its way from a device to the host.
struct Arrival {
  virtual ~Arrival() = default;
  /// Its rows, one behind the other, once they are there; as long as this lives.
  virtual const float* wait() = 0;
};

/// Operations that a device remembers, to be asked for at once.
struct Recording {
  virtual ~Recording() = default;
};
struct HostRange {
  const void* begin;
  size_t bytes;
};

/// A weight matrix [rows, cols] = [outputs, inputs], packed by a backend in its own layout.
struct Weight {
  virtual ~Weight() = default;
  WeightFormat format = WeightFormat::f32;
  int64_t rows = 0, cols = 0;
  bool gated = false;
  size_t bytes = 0;
};

/// Matrices [n_i, cols] stacked along the rows (query, key and value become one). `gated`: the first half of the rows
/// is the gate, the second half the value it multiplies.
struct WeightSource {
  /// scale * b a, with a [rank, cols] and b [n_i, rank] (LoRA).
  struct Change {
    const float *a = nullptr, *b = nullptr;
    int64_t rank = 0;
    float scale = 1;
  };

  std::string name;  // for errors
  std::vector<TensorView> parts;
  bool gated = false;
  std::vector<Change> changes = {};  // added to the parts, where OperationTable::packs_changes; empty: none has any
};

/// y[t] = scale * table[ids[t]] + positions_table[positions[t]] + type_row. The last two may be absent.
struct EmbedArgs {
  const int32_t* ids;
  const TensorView* table;  // [V, C] f32, bf16 or f16
  float scale = 1;
  const int32_t* positions = nullptr;
  const TensorView* position_table = nullptr;
  const float* type_row = nullptr;  // [C]
  Matrix y;                         // [T, C]
};

/// Rows of bf16: what is only kept, or multiplied as bf16.
struct Bf16Matrix {
  uint16_t* data = nullptr;
  int64_t rows = 0, cols = 0, stride = 0;  // stride: words from row to row

  uint16_t* row(int64_t i) const { return data + i * stride; }
  Bf16Matrix slice(int64_t first, int64_t count) const { return {data ? row(first) : nullptr, count, cols, stride}; }
  Bf16Matrix columns(int64_t first, int64_t count) const { return {data ? data + first : nullptr, rows, count, stride}; }
};

/// y = norm(x) * weight + bias (+ residual). layer: over mean and variance; rms: over the root mean square. y may be x.
struct NormArgs {
  NormKind kind = NormKind::layer;
  float eps = 1e-5f;
  Matrix x;                       // [T, C]
  const float* weight = nullptr;  // [C]
  const float* bias = nullptr;    // [C] or absent
  Matrix residual;                // [T, C] or absent
  Matrix y;
  Bf16Matrix narrow_y = {};  // in the place of y, where OperationTable::narrow_rows
  Matrix copy = {};          // gets x as it is, beside narrow_y
};

/// y = act(x W^T + bias) + residual, or, where the weight is gated, y = act(gate) * value with
/// [gate, value] = x W^T + bias; then y has half as many columns as the weight has rows. residual may be y.
struct LinearArgs {
  Matrix x;  // [T, K]
  const Weight* weight = nullptr;
  const float* bias = nullptr;  // [N] or absent
  Activation activation = Activation::none;
  Matrix residual;  // [T, N] or absent
  Matrix y;         // [T, N]
  /// In the places of x and of y (then without residual), with bf16 weights and multiples of 64 columns, where OperationTable::narrow_linear;
  /// one row behind the other, unless narrow_rows.
  Bf16Matrix narrow_x = {}, narrow_y = {};
};

/// In place, per token and head: optional RMS norm over the head (QK-norm), then rotation of the first
/// 2 * `half` channels, pairs (i, i + half), by the angles in cos, sin [P, half] at row positions[t].
struct RopeArgs {
  Matrix x;  // [T, heads * head_dim]
  int heads = 0, head_dim = 0;
  const float* norm_weight = nullptr;  // [D] or absent
  float eps = 1e-6f;
  const float *cos = nullptr, *sin = nullptr;  // absent: no rotation
  int half = 0;
  const int32_t* positions = nullptr;  // [T]
  bool inverse = false;                // by the negative angles: the gradient of a rotation
  /// With inverse and norm_weight, where OperationTable::narrow_rows and into narrow_y: what the norm was of. x, a gradient, then goes back
  /// through rotation and norm.
  Matrix normed = {};
  Bf16Matrix narrow_normed = {};  // in its place
  /// x as bf16 and in the place of the result, where OperationTable::narrow_rows and head_dim and half are even; they may be the same.
  Bf16Matrix narrow_x = {}, narrow_y = {};
};

/// Attention within each sequence of a packed batch. Queries of sequence b are rows q_offsets[b] .. q_offsets[b+1] of q
/// and stand at positions q_starts[b], q_starts[b]+1, ... of the sequence; keys and values are rows kv_offsets[b] ..
/// A query at i sees a key at j if -left <= j - i <= right (a negative bound: unlimited); causal is right = 0.
/// Query head h uses key head h / (heads / kv_heads).
struct AttentionArgs {
  Matrix q, k, v, y;  // [Tq, H*D], [T, Hkv*D], [T, Hkv*D], [Tq, H*D]
  const int32_t *q_offsets = nullptr, *kv_offsets = nullptr, *q_starts = nullptr;
  int sequences = 0, heads = 0, kv_heads = 0, head_dim = 0;
  float scale = 1;
  int64_t left = -1, right = -1;
  // Added to the scores before softmax: bias[h * (2 * bias_reach + 1) + bias_reach + (i - j)]; absent if null (MPNet).
  const float* bias = nullptr;
  int64_t bias_reach = 0;
  bool reduced = false;  // queries, keys, probabilities and values may be rounded to bf16 before they are multiplied
  /// In the places of q, of k and v, and of y, where OperationTable::narrow_rows; then reduced, without bias, and with heads as narrow_heads()
  /// has it.
  Bf16Matrix narrow_q = {}, narrow_k = {}, narrow_v = {}, narrow_y = {};

  static bool narrow_heads(int64_t head_dim) { return head_dim % 8 == 0 && head_dim <= 128; }
};

/// y[i] = the sum over k < taps of weights[i * taps + k] * x[rows[i * taps + k]]; without weights they are 1.
struct GatherArgs {
  Matrix x, y;
  const int32_t* rows = nullptr;
  int taps = 1;
  const float* weights = nullptr;
};

/// y[rows[i]] = x[i], or y[rows[i]] += x[i]; without rows, row i goes to row i. No row comes twice.
struct ScatterArgs {
  Matrix x, y;
  const int32_t* rows = nullptr;
  bool add = false;
};

/// y = x rounded to the nearest bf16, ties to even.
struct NarrowArgs {
  Matrix x;
  Bf16Matrix y;
};

/// y = x.
struct WidenArgs {
  Bf16Matrix x;
  Matrix y;
};

/// Bytes as the numbers they stand for, which depend on their channel; a row has all of one channel, then of the next.
struct UnpackArgs {
  const uint8_t* x = nullptr;    // [T, C], one row behind the other
  const float* table = nullptr;  // [channels, 256]
  int64_t channels = 1;          // C is a multiple
  Matrix y;                      // [T, C]
};

/// One vector per sequence: y[b] from rows offsets[b] .. offsets[b+1] of x.
struct PoolArgs {
  Matrix x, y;
  const int32_t* offsets = nullptr;
  Pooling mode = Pooling::mean;
};

/// Rows scaled to Euclidean length 1 (rows of length < 1e-12 stay, as in torch.nn.functional.normalize). In place.
struct NormalizeArgs {
  Matrix x;
};

// ---- backward: gradients of a scalar by the inputs and by the weights of the operations above. Those of weights are added to what is
// there; a null one is not wanted and costs nothing.

/// Gradients of norm (without residual) at x: dx = or += by the input, dweight and dbias [C] += by the weights.
struct NormBackwardArgs {
  NormKind kind = NormKind::layer;
  float eps = 1e-5f;
  Matrix x;                       // [T, C]
  const float* weight = nullptr;  // [C]
  Matrix dy, dx;                  // [T, C]; dx absent: not wanted; it may be dy
  bool add = false;               // dx += instead of =
  float *dweight = nullptr, *dbias = nullptr;
  int groups = 1;  // of C / groups neighbouring channels, each normed by itself and with the same weight [C / groups]: heads
  Bf16Matrix narrow_dy = {}, narrow_dx = {};  // in the place of dy, and dx once more beside it, where OperationTable::narrow_rows

  /// One of them alone.
  NormBackwardArgs group(int g) const {
    NormBackwardArgs out = *this;
    out.groups = 1;
    for (Matrix* m : {&out.x, &out.dy, &out.dx})
      if (m->data) *m = m->columns(g * (x.cols / groups), x.cols / groups);
    return out;
  }
};

/// y = act(x), or gated act(x[:, :N]) * x[:, N:]: what linear does behind its product, as an operation of its own.
struct ActivateArgs {
  Activation activation = Activation::none;
  bool gated = false;
  Matrix x, y;                              // [T, N] or gated [T, 2 N], [T, N]
  Bf16Matrix narrow_x = {}, narrow_y = {};  // both in their places, where OperationTable::narrow_rows and N is even
};

/// dx = gradient of activate at x; dx may be x.
struct ActivateBackwardArgs {
  Activation activation = Activation::none;
  bool gated = false;
  Matrix x, dy, dx;
  Bf16Matrix narrow_x = {}, narrow_dy = {}, narrow_dx = {};  // all in their places, as there
};

/// dw [N, K] += dy^T x, dbias [N] += the sums of dy's columns: gradients of linear by its weights. That by its input is linear again,
/// with the weight transposed.
struct LinearBackwardArgs {
  Matrix dy, x;  // [T, N], [T, K]
  Matrix dw;     // absent: not wanted
  float* dbias = nullptr;
  bool reduced = false;                      // dy and x may be rounded to bf16 before they are multiplied
  Bf16Matrix narrow_dy = {}, narrow_x = {};  // in their places, where OperationTable::narrow_rows; then reduced
};

/// Gradients of low-rank changes scale * b a of parts of a weight, each having outputs [first, first + rows) of it (LoRA): with its columns
/// dy' of dy, da [rank, K] += scale * (dy' b)^T x and db [rows, rank] += scale * dy'^T (x a^T). a, b and what they are multiplied with may be
/// rounded to bf16.
struct LowRankBackwardArgs {
  struct Part {
    int64_t first, rows, rank;
    float scale;
    const float *a, *b;
    float *da, *db;
  };
  Bf16Matrix dy, x;  // [T, N], [T, K]
  std::vector<Part> parts;

  /// Whether a part like this is supported: rows are read by eights.
  static bool fits(const Bf16Matrix& dy, const Bf16Matrix& x, int64_t first, int64_t rows, int64_t rank) {
    return dy.data && x.data && dy.stride % 8 == 0 && x.stride % 8 == 0 && x.cols % 64 == 0 && first % 8 == 0 && rows % 8 == 0 && rank <= 32;
  }
};

/// Gradients of attention; `forward` without y. dq, dk, dv are overwritten. dbias like AttentionArgs::bias.
struct AttentionBackwardArgs {
  AttentionArgs forward;
  Matrix dy, dq, dk, dv;
  float* dbias = nullptr;
  Bf16Matrix narrow_dy = {}, narrow_dq = {}, narrow_dk = {}, narrow_dv = {};  // in their places, as in forward
};

/// dtable [V, C] += dy of the rows with that id, times scale.
struct EmbedBackwardArgs {
  const int32_t* ids = nullptr;  // negative: this row has none
  float scale = 1;
  Matrix dy, dtable;
};

/// dx [T, C] = gradient of pool at x for dy [B, C].
struct PoolBackwardArgs {
  Matrix x, dy, dx;
  const int32_t* offsets = nullptr;
  Pooling mode = Pooling::mean;
};

/// In place: dy becomes the gradient of normalize at x.
struct NormalizeBackwardArgs {
  Matrix x, dy;
};

/// Rows of scores [N, M] look for their own columns: a row's loss is the mean over its positives p of
/// -log(e^(s_p / t) / (e^(s_p / t) + the sum over its negatives of e^(s / t))) (InfoNCE), its negatives being all columns that are no
/// positives, save those above s_p + margin where margin >= 0. y = factor times the gradient of the row's loss by the row.
struct ContrastArgs {
  Matrix scores, y;
  const int32_t *offsets = nullptr, *positives = nullptr;  // row i's: positives[offsets[i] .. offsets[i + 1]); none: no loss
  float temperature = 1, margin = -1, factor = 1;
  double* losses = nullptr;  // [N]
};

/// A step of AdamW (Loshchilov & Hutter 2019) on `count` numbers; their gradient is cleared. With g = scale * gradient:
/// first = beta1 * first + (1 - beta1) * g, second likewise with g^2,
/// value = decay * value - rate * first / (sqrt(second) / correction + epsilon).
struct AdamWArgs {
  float *value = nullptr, *gradient = nullptr, *first = nullptr, *second = nullptr;
  int64_t count = 0;
  float scale = 1, beta1 = 0.9f, beta2 = 0.999f, decay = 1, rate = 0, correction = 1, epsilon = 1e-8f;
};

/// *sum = the sum of the squares of all these numbers, in double precision, block by block: the order is that of the numbers, not of threads.
struct SquaresArgs {
  std::vector<std::span<const float>> values;
  double* sum = nullptr;
};

/// out = base + scale * consensus of the parents' coefficient * (x - base), bf16 as it is stored, in single precision and in the order of the
/// parents. Where `from` is given, differences whose magnitude's bits lie outside [from, to] count as zero; with `elect` only those that
/// agree with the sign of their sum do, and with `normalize` these are divided by their weights.
struct MergeArgs {
  static constexpr int kMaxParents = 16;
  int parents = 0;
  const uint16_t* base = nullptr;      // [count]; null: the parents themselves
  const uint16_t* const* x = nullptr;  // [parents][count]
  const double *coefficients = nullptr, *weights = nullptr;
  const uint32_t *from = nullptr, *to = nullptr;
  bool elect = false, normalize = false;
  double scale = 1;
  uint16_t* out = nullptr;
  double* sums = nullptr;  // [parents + 1], added to: squares of the differences, and entries where they point both ways
  int64_t count = 0;
};

/// Runs on rows [first, first + count).
using RowsBody = std::function<void(Context& context, int64_t first, int64_t count)>;

struct OperationTable {
  const char* name = "";
  const void* data = nullptr;  // the backend's own
  /// linear rounds x to bf16 where the weights are bf16; between two of them rows may be bf16 then, and nothing is lost.
  bool narrow_linear = false;
  /// The same of all that passes between norm, rope, attention, activate and linear, and of their gradients.
  bool narrow_rows = false;

  /// pack and repack add WeightSource::changes; elsewhere that is for their callers.
  bool packs_changes = false;

  void* (*allocate)(const OperationTable&, size_t bytes) = nullptr;  // aligned to 64 bytes, not cleared; Error OUT_OF_MEMORY
  void (*release)(const OperationTable&, void* memory, size_t bytes) = nullptr;
  /// What allocate() could give now. Null: whatever the host has.
  size_t (*free_bytes)(Context&) = nullptr;
  /// Returns when everything asked for so far is in memory, where a backend works on its own; before host code looks at or changes memory of
  /// allocate(). Null: nothing to wait for.
  void (*finish)(Context&) = nullptr;
  /// Brings a matrix to the host, behind all that was asked for so far and beside what comes next, which may have its memory. Null: by copy() and
  /// finish().
  std::unique_ptr<Arrival> (*bring)(Context&, const Matrix&) = nullptr;
  /// A copy of host memory that does not change as long as it is held: operations use the copy wherever they are given that memory or a part
  /// of it. Null: host memory is as good.
  Resident (*reside)(Context&, const void* host, size_t bytes) = nullptr;
  /// Calls body, whose operations are remembered and not carried out: replay() does that, with the contents that `inputs`, host memory that
  /// body's operations read, have then. What else they read of the host's memory is taken as it is now; they may write none of it, and body
  /// may not wait for them. Null where the device cannot. A null entry: it never can.
  std::unique_ptr<Recording> (*record)(Context&, const std::vector<HostRange>& inputs, const std::function<void()>& body) = nullptr;
  /// `inputs` in the order and sizes of those that were recorded.
  void (*replay)(Context&, Recording&, const std::vector<const void*>& inputs) = nullptr;
  std::unique_ptr<Weight> (*pack)(Context&, const WeightSource&, WeightFormat) = nullptr;
  /// New values of the same shapes into a weight that pack() made.
  void (*repack)(Context&, const WeightSource&, Weight&) = nullptr;
  /// The transpose of a packed weight (not a gated one), in the same format, into `into`: made here where it is null, else of that shape.
  void (*pack_transposed)(Context&, const Weight& weight, std::unique_ptr<Weight>& into) = nullptr;

  /// Calls body for all rows, in one call or in several at the same time on parts of them: whatever suits the device.
  /// For chains of operations that look at one row only, so that what passes between them stays in cache.
  /// `width`: floats per row that the chain touches between its operations.
  void (*for_rows)(Context&, int64_t rows, int64_t width, const RowsBody& body) = nullptr;

  void (*embed)(Context&, const EmbedArgs&) = nullptr;
  void (*norm)(Context&, const NormArgs&) = nullptr;
  void (*linear)(Context&, const LinearArgs&) = nullptr;
  /// linear into narrow_y, then rope in its place: of its first columns, `queries` (of no heads: there are none), and of the next, `keys`. To the
  /// bit what they do one after the other. Null: by them.
  void (*linear_rope)(Context&, const LinearArgs&, const RopeArgs& queries, const RopeArgs& keys) = nullptr;
  void (*rope)(Context&, const RopeArgs&) = nullptr;
  void (*attention)(Context&, const AttentionArgs&) = nullptr;
  void (*gather)(Context&, const GatherArgs&) = nullptr;
  void (*scatter)(Context&, const ScatterArgs&) = nullptr;
  /// Sets x to zero. Null: by the host.
  void (*clear)(Context&, const Matrix& x) = nullptr;
  void (*pool)(Context&, const PoolArgs&) = nullptr;
  void (*normalize)(Context&, const NormalizeArgs&) = nullptr;

  void (*unpack)(Context&, const UnpackArgs&) = nullptr;
  void (*narrow)(Context&, const NarrowArgs&) = nullptr;
  void (*widen)(Context&, const WidenArgs&) = nullptr;
  void (*norm_backward)(Context&, const NormBackwardArgs&) = nullptr;
  void (*activate)(Context&, const ActivateArgs&) = nullptr;
  void (*activate_backward)(Context&, const ActivateBackwardArgs&) = nullptr;
  void (*linear_backward)(Context&, const LinearBackwardArgs&) = nullptr;
  /// Null: by linear and linear_backward, as where it does not fit.
  void (*low_rank_backward)(Context&, const LowRankBackwardArgs&) = nullptr;
  void (*attention_backward)(Context&, const AttentionBackwardArgs&) = nullptr;
  void (*embed_backward)(Context&, const EmbedBackwardArgs&) = nullptr;
  void (*pool_backward)(Context&, const PoolBackwardArgs&) = nullptr;
  void (*normalize_backward)(Context&, const NormalizeBackwardArgs&) = nullptr;
  void (*contrast)(Context&, const ContrastArgs&) = nullptr;
  void (*adamw)(Context&, const AdamWArgs&) = nullptr;
  void (*squares)(Context&, const SquaresArgs&) = nullptr;
  /// Null on the CPU, where merging has loops of its own. From any thread; the result is there when it returns.
  void (*merge)(Context&, const MergeArgs&) = nullptr;
};

inline void finish(Context& context);

/// Fails with BACKEND_UNSUPPORTED and the operation's name if an entry is null.
void require(const OperationTable& table);
/// The same for what training needs beside.
void require_training(const OperationTable& table);

/// A row stride for `cols` words that keeps equal columns of neighbouring rows in different cache sets.
int64_t padded_stride(int64_t cols);

/// Memory handed out in order and given back all at once; grows to what the largest pass needs and then stays.
class Arena {
 public:
  explicit Arena(const OperationTable& table) : table_(table) {}
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  void* take(size_t bytes);
  /// [rows, cols] with a padded stride.
  Matrix matrix(int64_t rows, int64_t cols);
  /// Rows that lie one behind the other, so that several can be read as one longer row.
  Matrix contiguous(int64_t rows, int64_t cols);
  Bf16Matrix bf16_matrix(int64_t rows, int64_t cols);
  size_t bytes() const;
  /// Gives back everything.
  void clear() {
    chunk_ = used_ = taken_ = 0;
    unite();
  }
  /// How often its memory has moved: what was recorded before reads and writes elsewhere.
  int64_t moves() const { return moves_; }

  /// Gives back everything taken after it was made.
  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), chunk_(arena.chunk_), used_(arena.used_), taken_(arena.taken_) {
      if (taken_ == 0) arena.unite();
    }
    ~Scope() { arena_.chunk_ = chunk_, arena_.used_ = used_, arena_.taken_ = taken_; }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Arena& arena_;
    size_t chunk_, used_, taken_;
  };

 private:
  struct Chunk {
    char* memory;
    size_t bytes;
  };
  /// While nothing is taken: one chunk next time, where there are chunks for half as much again as was ever taken. Passes that grow leave
  /// such behind, each too small for the next one.
  void unite();
  void release();

  const OperationTable& table_;
  std::vector<Chunk> chunks_;
  size_t chunk_ = 0, used_ = 0;  // the next byte
  size_t taken_ = 0, most_ = 0;  // now; ever
  int64_t moves_ = 0;
};

/// Numbers that stay with a device; the host may look at them once finish() has been called. Zero to begin with.
class Floats {
 public:
  Floats() = default;
  Floats(const OperationTable& table, int64_t size);
  Floats(Floats&& other) noexcept { *this = std::move(other); }
  Floats& operator=(Floats&& other) noexcept {
    std::swap(table_, other.table_), std::swap(data_, other.data_), std::swap(size_, other.size_);
    return *this;
  }
  ~Floats();

  float* data() { return data_; }
  const float* data() const { return data_; }
  int64_t size() const { return size_; }
  float& operator[](int64_t i) { return data_[i]; }
  float operator[](int64_t i) const { return data_[i]; }

 private:
  const OperationTable* table_ = nullptr;
  float* data_ = nullptr;
  int64_t size_ = 0;
};

/// Sets x to zero.
void clear(Context& context, const Matrix& x);
/// to = from, of which either may lie in memory of the host: that of `from` may change when this returns, that of `to` can be read after
/// finish(). Host code that would look at the device's own memory instead would move it to and fro.
void copy(Context& context, const Matrix& from, const Matrix& to);
/// The rows of x, one behind the other; waits for them.
std::vector<float> values_of(Context& context, const Matrix& x);
/// x on its way to the host, by the table's bring(), or there already.
std::unique_ptr<Arrival> bring(Context& context, const Matrix& x);

/// What one forward pass runs on: a backend, a number of threads, scratch memory. Not for two passes at a time.
struct Context {
  Context(const OperationTable& table, int threads);

  const OperationTable& ops;
  int threads;
  Arena scratch;
  std::vector<std::unique_ptr<Context>> workers;  // contexts of workers 1 .. threads-1
  const std::atomic<bool>* cancelled = nullptr;   // checked between layers

  Context& worker(int index) { return index == 0 ? *this : *workers[size_t(index) - 1]; }
  size_t scratch_bytes() const;
};

inline void finish(Context& context) {
  if (context.ops.finish) context.ops.finish(context);
}

inline Resident reside(Context& context, const void* host, size_t bytes) {
  return context.ops.reside && bytes > 0 ? context.ops.reside(context, host, bytes) : nullptr;
}
template <class T>
Resident reside(Context& context, const std::vector<T>& host) {
  return reside(context, host.data(), host.size() * sizeof(T));
}

}  // namespace conan
