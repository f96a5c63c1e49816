// What one instruction set gives: small single-threaded kernels. backend.cpp divides the work, packs weights and calls
// them. Each simd_*.h + kernels.inl makes one such table; reference.cpp makes none, it is a backend of plain loops.
#pragma once
#include <cstdint>

#include "ops/ops.h"

namespace conan::cpu {

constexpr int kMaxTileRows = 14;
constexpr int kNeonTileRows = 10;  // with 12, GCC keeps some of the 24 sums in memory
constexpr int kMaxWidth = 16;      // floats in the widest register

/// How the weights of one panel (two registers of output columns) are laid out along K.
enum class Layout {
  f32,           // [K][NR] float
  bf16_columns,  // [K][W] words: column j in the low half, column W + j in the high half; widened on the fly
  bf16_pairs,    // [K/2][NR] words of two k: what vdpbf16ps takes
  f16,           // [K][NR] halves
  i8_pairs,      // [K/2][NR][2]
  i8_quads,      // [K/4][NR][4]: what vpdpbusd and sdot take
};

/// tile[rows][NR] = a[rows][steps] * panel. a: rows of 32-bit words `stride` words apart (a float, two bf16, two int16
/// or four bytes each). The sums of one element run over k in order whatever the number of rows, so a result does not
/// depend on what else is in the batch.
using TileKernel = void (*)(const uint32_t* a, int64_t stride, const void* panel, int64_t steps, void* tile);

struct GemmKernel {
  const char* name = nullptr;  // null: not available
  Layout layout = Layout::f32;
  TileKernel tile[kMaxTileRows + 1] = {};         // by number of rows
  TileKernel narrow_tile[kMaxTileRows + 1] = {};  // ditto, of a panel's first half alone; null: not available
  /// One row of activations to words; `scale` takes the row's quantisation step. Null: floats are used as they lie.
  void (*convert)(const float* x, int64_t k, uint32_t* words, float* scale) = nullptr;
  bool shifted = false;  // convert() makes unsigned bytes, 128 too large
  /// The transpose of a tile of NR x NR elements of this layout; null: element by element.
  void (*turn)(const void* in, void* out) = nullptr;
  /// A panel of rows x[t][0 .. columns), columns <= NR, which become its steps: activations as a weight. Null: not available.
  void (*pack_rows)(const float* x, int64_t stride, int64_t rows, int columns, void* panel) = nullptr;
};

/// What becomes of a finished tile: (scales,) bias, activation, gate, residual.
struct Finish {
  const float* bias = nullptr;
  Activation activation = Activation::none;
  bool gated = false;
  bool coarse = false;                  // see with_activation
  int64_t outputs = 0;                  // columns of y
  const float* column_scale = nullptr;  // int8 only, in panel order
  const int32_t* compensation = nullptr;
  const float* row_scale = nullptr;  // of the tile's first row
  const float* residual = nullptr;   // ditto
  int64_t residual_stride = 0;
  float* y = nullptr;
  int64_t y_stride = 0;
  uint16_t* narrow_y = nullptr;  // instead of y: whole registers of columns, no residual
  int64_t narrow_stride = 0;
};

/// Up to two registers' worth of neighbouring queries of one head.
struct AttentionPanel {
  const float *q, *k, *v;  // first query; first key and value of the sequence, at this head's columns
  float* y;
  int64_t q_stride, k_stride, v_stride, y_stride;
  int queries, head_dim;
  int64_t keys, position;  // keys in the sequence; position of the first query
  float scale;
  int64_t left, right;
  const float* bias;  // at distance 0, or null
  float* scratch;     // attention_scratch(head_dim) floats
  bool same_keys;     // the scratch still is as the panel before left it, and that one had the same keys and values
};

struct Kernels {
  const char* name;
  int width, tile_rows;
  GemmKernel gemm[4];  // by WeightFormat
  void (*finish)(const void* tile, int rows, int64_t panel, const Finish&);
  void (*attention)(const AttentionPanel&);
  void (*attention_reduced)(const AttentionPanel&);  // may round to bf16 before it multiplies
  void (*norm)(const NormArgs&);
  void (*rope)(const RopeArgs&);
  void (*embed)(const EmbedArgs&);
  void (*pool)(const PoolArgs&, int sequence);
  void (*normalize)(const NormalizeArgs&);
  void (*transpose)(const Matrix& x, const Matrix& y);
  void (*narrow)(const NarrowArgs&);
  void (*widen)(const WidenArgs&);
  void (*activate)(const ActivateArgs&);
  void (*activate_backward)(const ActivateBackwardArgs&);
  void (*norm_backward)(const NormBackwardArgs&, float* statistics);
  void (*norm_backward_columns)(const NormBackwardArgs&, const float* statistics, int64_t first, int64_t count);
  void (*attention_backward)(const AttentionBackwardArgs&, int sequence, int kv_head, float* scratch);
  int64_t (*attention_backward_scratch)(int64_t keys, int head_dim);  // floats
  void (*adamw)(const AdamWArgs&);
  double (*squares)(const float* values, int64_t count);
};

constexpr int kAttentionBlock = 128;  // keys at a time: 128 x 32 scores stay in L1

int64_t attention_scratch(int head_dim);

extern const Kernels kernels_portable, kernels_avx2, kernels_avx512, kernels_neon;
// The dot-product extensions, each in its own translation unit; they replace single entries.
extern const GemmKernel gemm_bf16_avx512bf16, gemm_i8_avx512vnni, gemm_i8_dotprod;
void attention_avx512bf16(const AttentionPanel&);
void finish_avx512bf16(const void* tile, int rows, int64_t panel, const Finish&);

}  // namespace conan::cpu
