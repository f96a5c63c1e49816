// The transformer that every architecture here is a configuration of: embedding, layers of attention and MLP, final norm.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "models/config.h"
#include "models/gradients.h"
#include "models/weights.h"

namespace conan {

/// A packed batch: sequence b is ids[offsets[b] .. offsets[b+1]).
struct TokenBatch {
  const int32_t* ids = nullptr;
  const int32_t* offsets = nullptr;
  int sequences = 0;

  int64_t tokens() const { return offsets[sequences]; }
};

/// Rows of a packed batch that get values from elsewhere: values.row(i) belongs to row rows[i]; rows rise.
struct RowValues {
  std::vector<int32_t> rows;
  Matrix values;  // [rows, hidden]
};

/// What a forward pass starts from: token ids, or with batch.ids null the embeddings themselves.
struct TransformerInput {
  TokenBatch batch;
  Matrix embeddings;                // [T, hidden] where there are no ids
  std::vector<RowValues> replaced;  // embeddings of tokens that stand for pictures or sounds
  std::vector<RowValues> added;     // to the states after layer 0, 1, ... (DeepStack)
  std::vector<int32_t> positions;   // [axes][T], where rotary positions have several axes and differ between them
};

/// States of one pass, from layer `lowest` on.
struct Tape {
  /// What a layer need not compute again. All have [T, ...] rows; what is absent is.
  struct Kept {
    Rows qkv;       // as the product made them where queries and keys have a norm or `turned` is there, else turned in their place
    Rows turned;    // queries and keys as attention reads them, where they are bf16 and not in their place
    Matrix middle;  // the state after attention
    Rows u;         // the MLP's inner products, before the activation
    // As bf16, where gradients of weights look at them: what each product was of.
    Bf16Matrix a, attended, m, g;
  };

  int64_t lowest = 0;
  std::unique_ptr<Arena> memory;  // its own: a forward pass gives its scratch memory back
  std::vector<Matrix> states;     // before layer lowest, lowest + 1, ..., after the last (before the final norm)
  std::vector<Kept> kept;         // of layer lowest, ...; those that are not there are computed again
  size_t budget = 0;              // bytes that `kept` may take: of as many layers as they are enough for
  const Gradients* gradients = nullptr;

  const Kept* kept_of(int64_t layer) const {
    return layer >= lowest && layer - lowest < int64_t(kept.size()) ? &kept[size_t(layer - lowest)] : nullptr;
  }
};

/// Gradients of what a pass was given: of embeddings where there were no ids, and of RowValues in their order.
struct InputGradients {
  Matrix embeddings;
  std::vector<Matrix> replaced, added;
};

class Transformer {
 public:
  /// `one_row`: the caller pools by the first or last token, and the last layer computes nothing for the others (unless its queries, keys
  /// and values are one tensor that trains).
  Transformer(Context& context, TransformerConfig config, WeightLoader& loader, WeightFormat format, std::optional<Pooling> one_row);

  const TransformerConfig& config() const { return config_; }
  /// Whether forward() with this pooling and a tape returns [B, hidden] of a last layer that computed no more than that.
  bool pools_itself(Pooling pooling) const { return one_row_ == pooling; }
  size_t weight_bytes() const { return weight_bytes_; }

  /// Checks ids and lengths: INVALID_INPUT names the sequence.
  void check(const TokenBatch& batch) const;

  /// Called with the hidden states [T, hidden] before the first layer (0) and after each (1 .. layers).
  using Observer = std::function<void(int64_t layer, const Matrix& hidden)>;

  /// The lowest layer of which anything trains; `layers` where nothing does.
  int64_t lowest_trained(const Gradients& gradients) const;
  bool trains_embeddings(const Gradients& gradients) const;
  bool trains(const Gradients& gradients) const;

  /// Keeps what backward() needs of a pass: the states before layers `lowest` and up, and after the last. To be handed to forward() as
  /// observer.
  Observer record(Context& context, Tape& tape, int64_t lowest, const Gradients& gradients) const;
  /// From the gradient of what forward() returned, `dy` [T, hidden] or where it pools [B, hidden], which it overwrites, to the gradients of
  /// all that trains, and, with `inputs`, of what took the place of embeddings and was added (memory: the context's scratch). Layers are
  /// computed again from their inputs (activation checkpointing). `above` sees the gradient of the states after each layer first, and may
  /// add to it.
  InputGradients backward(Context& context, const TransformerInput& input, const Tape& tape, const Matrix& dy, Gradients& gradients, bool inputs,
                          const Observer& above = {}) const;
  /// The final norm of states as the tape ends with them.
  void finish(Context& context, const Matrix& states, const Matrix& y) const { normalize(context, final_norm_, states, y); }
  /// Once small tensors have changed in their place.
  void refresh() { spread_relative_bias(); }

  /// Final hidden states: of all tokens [T, hidden], or with `pooling` one row per sequence [B, hidden]. The memory is
  /// the context's scratch.
  Matrix forward(Context& context, const TransformerInput& input, std::optional<Pooling> pooling, const Observer& observer = {},
                 Tape* tape = nullptr) const;

 private:
  struct Norm {
    Values weight, bias;
    explicit operator bool() const { return !weight.empty(); }
  };
  struct Layer {
    Norm attention_norm, attention_post_norm, mlp_norm, mlp_post_norm;
    std::unique_ptr<Weight> qkv, q, kv;  // qkv, or q and kv apart in a last layer that needs few queries
    Values qkv_bias, q_norm, k_norm;
    std::unique_ptr<Weight> output, mlp_in, mlp_out;
    Values output_bias, mlp_in_bias, mlp_out_bias;
  };
  /// Cosines and sines [rows, half] that queries and keys turn by.
  struct Angles {
    const float *cos = nullptr, *sin = nullptr;
    int half = 0;
  };
  /// Those of all positions; or for each axis one after the other, with zeros where a frequency belongs to another axis.
  struct RopeTable {
    std::vector<float> cos, sin;  // [axes * positions, half]
    int64_t positions = 0;
    Resident residents[2];

    void fill(Context& context, const RopeConfig& config, int64_t axes, int64_t count);
  };
  /// What the layers of one pass share.
  struct Pass {
    explicit Pass(const TokenBatch& batch) : batch(batch) {}

    const TokenBatch& batch;
    Matrix x, qkv;                    // [T, hidden], [T, Q + 2 KV]
    Bf16Matrix narrow_qkv;            // in its place: what attention reads
    Rows attended;                    // [T, Q]
    bool narrow = false;              // attention reads bf16
    std::vector<int32_t> positions;   // rows of the angles: within the sequence, or the token's own
    std::vector<int32_t> table_rows;  // of the learned position embedding
    std::vector<int32_t> zeros;       // [B]
    std::vector<Angles> ropes;
    std::vector<Resident> residents;
    Tape* tape = nullptr;

    const Tape::Kept* kept(int64_t layer) const { return tape ? tape->kept_of(layer) : nullptr; }
    /// Where a layer's input goes beside its norm; null: nowhere, or it has gone before.
    const Matrix* recorded(int64_t layer) const {
      return tape && layer >= tape->lowest && layer - tape->lowest < int64_t(tape->states.size()) ? &tape->states[size_t(layer - tape->lowest)]
                                                                                                  : nullptr;
    }
  };
  /// Where queries, keys and values go from the product, and where attention finds them (values perhaps where they came from).
  Rows made(const Pass& pass, int64_t index) const;
  Rows turned(const Pass& pass, int64_t index) const;
  void keep(Context& context, const Pass& pass) const;
  struct LayerState;

  /// The queries of a last layer that looks at one row of each sequence, or at all.
  struct Queries {
    std::vector<int32_t> rows, starts, offsets, positions;
  };
  Queries queries_of(const Pass& pass, bool one_row) const;
  Pass begin(Context& context, const TransformerInput& input) const;
  void embed(Context& context, const TokenBatch& batch, const Pass& pass, const Matrix& x, int64_t first) const;
  static void put_rows(Context& context, const RowValues& rows, const Matrix& x, int64_t first, int64_t count, bool add);

  void spread_relative_bias();
  void gather_relative_bias(const std::vector<float>& gradient, float* buckets) const;
  void load_layer(Context& context, WeightLoader& loader, WeightFormat format, int64_t index, bool split_queries);
  Norm load_norm(WeightLoader& loader, const std::string& name) const;
  void normalize(Context& context, const Norm& norm, const Matrix& x, const Matrix& y, const Matrix& residual = {}, const Bf16Matrix& narrow_y = {},
                 const Matrix& copy = {}) const;
  bool rotates(int64_t index) const;
  /// To y, which may be x.
  RopeArgs rotation(int64_t index, const Pass& pass, const Rows& x, bool queries, const int32_t* positions, const Rows& y) const;
  void rotate(Context& context, int64_t index, const Pass& pass, const Rows& x, bool queries, const int32_t* positions, const Rows& y) const;
  bool narrow_into(Context& context, const Weight& weight) const;
  bool takes_narrow(Context& context, const Weight& weight, int64_t cols) const;
  bool narrow_attention(Context& context) const;
  bool narrow_inner(Context& context, const Layer& layer) const;
  bool narrow_only(const Pass& pass, int64_t index) const;
  bool turns_narrow(const Pass& pass, int64_t index) const;
  void project(Context& context, int64_t index, const Pass& pass, int64_t first, int64_t count) const;
  AttentionArgs attention_of(int64_t index, const Rows& q, const Rows& k, const Rows& v, const TokenBatch& batch, const int32_t* q_offsets,
                             const int32_t* q_starts) const;
  void attend(Context& context, int64_t index, const Pass& pass, const Rows& q, const Rows& y, const int32_t* q_offsets,
              const int32_t* q_starts) const;
  void finish_layer(Context& context, const Layer& layer, const Rows& attended, const Matrix& x, const Tape::Kept* kept = nullptr,
                    int64_t first = 0) const;
  Angles angles(Context& context, int rope, int64_t positions) const;
  Angles angles_by_axes(Context& context, int rope, const TransformerInput& input) const;
  std::vector<RowValues> with_positions(Context& context, const std::vector<RowValues>& replaced, const std::vector<int32_t>& table_rows) const;

  TransformerConfig config_;
  std::optional<Pooling> one_row_;
  bool reduced_;  // attention may use bf16 products, as the weights do
  TensorView token_embedding_, position_embedding_;
  Values type_rows_, relative_values_;  // [types, hidden], [buckets, heads]
  std::vector<float> relative_bias_;
  bool apart_ = false;  // training: the gate of an MLP is an operation of its own
  Norm embedding_norm_, final_norm_;
  std::vector<Layer> layers_;
  mutable std::vector<RopeTable> rope_tables_, rope_axes_;  // grow with the longest input seen
  std::vector<Resident> residents_;
  size_t weight_bytes_ = 0;
};

}  // namespace conan
