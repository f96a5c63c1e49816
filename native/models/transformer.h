// The transformer that every architecture here is a configuration of: embedding, layers of attention and MLP, final norm.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "models/config.h"
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

class Transformer {
 public:
  /// `one_row`: the caller pools by the first or last token, and the last layer computes nothing for the others.
  Transformer(Context& context, TransformerConfig config, WeightLoader& loader, WeightFormat format, std::optional<Pooling> one_row);

  const TransformerConfig& config() const { return config_; }
  size_t weight_bytes() const { return weight_bytes_; }

  /// Checks ids and lengths: INVALID_INPUT names the sequence.
  void check(const TokenBatch& batch) const;

  /// Called with the hidden states [T, hidden] before the first layer (0) and after each (1 .. layers).
  using Observer = std::function<void(int64_t layer, const Matrix& hidden)>;

  /// Final hidden states: of all tokens [T, hidden], or with `pooling` one row per sequence [B, hidden]. The memory is
  /// the context's scratch.
  Matrix forward(Context& context, const TransformerInput& input, std::optional<Pooling> pooling, const Observer& observer = {}) const;

 private:
  struct Norm {
    std::vector<float> weight, bias;
    explicit operator bool() const { return !weight.empty(); }
  };
  struct Layer {
    Norm attention_norm, attention_post_norm, mlp_norm, mlp_post_norm;
    std::unique_ptr<Weight> qkv, q, kv;  // qkv, or q and kv apart in a last layer that needs few queries
    std::vector<float> qkv_bias, q_norm, k_norm;
    std::unique_ptr<Weight> output, mlp_in, mlp_out;
    std::vector<float> output_bias, mlp_in_bias, mlp_out_bias;
  };
  struct RopeTable {
    std::vector<float> cos, sin;  // [positions, half]
    int half = 0;
  };
  struct Pass;

  void load_layer(Context& context, WeightLoader& loader, WeightFormat format, int64_t index, bool split_queries);
  Norm load_norm(WeightLoader& loader, const std::string& name) const;
  void normalize(Context& context, const Norm& norm, const Matrix& x, const Matrix& y, const Matrix& residual = {}) const;
  void rotate(Context& context, const Layer& layer, int64_t index, const Pass& pass, const Matrix& x, bool queries, const int32_t* positions) const;
  void project(Context& context, int64_t index, const Pass& pass, int64_t first, int64_t count) const;
  void attend(Context& context, int64_t index, const Pass& pass, const Matrix& q, const Matrix& y, const int32_t* q_offsets,
              const int32_t* q_starts) const;
  void finish_layer(Context& context, const Layer& layer, const Matrix& attended, const Matrix& x) const;
  const RopeTable& rope_table(int rope, int64_t positions) const;
  RopeTable rope_rows(const RopeConfig& config, const TransformerInput& input) const;
  std::vector<RowValues> with_positions(Context& context, const std::vector<RowValues>& replaced, const std::vector<int32_t>& table_rows) const;

  TransformerConfig config_;
  std::optional<Pooling> one_row_;
  bool reduced_;  // attention may use bf16 products, as the weights do
  TensorView token_embedding_, position_embedding_;
  std::vector<float> type_row_, relative_bias_;
  Norm embedding_norm_, final_norm_;
  std::vector<Layer> layers_;
  mutable std::vector<RopeTable> rope_tables_;  // grow with the longest input seen
  size_t weight_bytes_ = 0;
};

}  // namespace conan
