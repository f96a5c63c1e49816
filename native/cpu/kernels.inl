// Included once per instruction set, after CONAN_ISA and CONAN_TILE_ROWS are defined and V is declared.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "cpu/kernels.h"
#include "cpu/math.inl"
#include "cpu/tile.inl"
#include "cpu/gemm.inl"
#include "cpu/attention.inl"
#include "cpu/rows.inl"
#include "cpu/backward.inl"

namespace conan::cpu::CONAN_ISA {

static constexpr Kernels make_kernels(const char* name) {
  return {
      name,
      W,
      CONAN_TILE_ROWS,
      {float_kernel<F32Panel>("float32", Layout::f32, TileRows{}), float_kernel<Bf16Panel>("widened to float32", Layout::bf16_columns, TileRows{}),
       float_kernel<F16Panel>("widened to float32", Layout::f16, TileRows{}), i8_pairs_kernel("int8 pairs", TileRows{})},
      finish,
      attention_panel<PlainMath>,
      attention_panel<PlainMath>,
      norm_rows,
      rope_rows,
      embed_rows,
      pool_sequence,
      normalize_rows,
      transpose,
      narrow_rows,
      widen_rows,
      activate_rows,
      activate_backward_rows,
      norm_backward_rows,
      norm_backward_columns,
      attention_backward_head,
      attention_backward_scratch,
      adamw_span,
      squares_span};
}

}  // namespace conan::cpu::CONAN_ISA
