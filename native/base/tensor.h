// Data types, and views on tensors that somebody else owns.
// Shapes throughout the project use one alphabet: B sequences, T tokens, H heads, D head size, C channels.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace conan {

enum class Dtype { f32, bf16, f16, f64, i8, u8, i16, u16, i32, u32, i64, u64, boolean, f8_e4m3, f8_e5m2 };

size_t dtype_size(Dtype dtype);
const char* dtype_name(Dtype dtype);  // Hugging Face spelling: "float32", "bfloat16", ...

inline float bf16_to_f32(uint16_t bits) {
  uint32_t wide = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

/// Rounds to nearest, ties to even; NaN stays NaN.
inline uint16_t f32_to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t((bits >> 16) | 0x40);
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float f16_to_f32(uint16_t bits);
uint16_t f32_to_f16(float value);

/// A tensor as it lies in a file or in memory: contiguous, row-major, any rank.
struct TensorView {
  const void* data = nullptr;
  Dtype dtype = Dtype::f32;
  std::vector<int64_t> shape;

  int64_t size() const {
    int64_t n = 1;
    for (int64_t d : shape) n *= d;
    return n;
  }
  size_t bytes() const { return size_t(size()) * dtype_size(dtype); }
  /// Rows [first, first + count) of a matrix.
  TensorView rows(int64_t first, int64_t count) const {
    return {static_cast<const char*>(data) + size_t(first * shape[1]) * dtype_size(dtype), dtype, {count, shape[1]}};
  }
};

std::string shape_text(const std::vector<int64_t>& shape);  // "[8960, 1536]"

/// Widens `count` elements from `first` on to f32. Reads f32, bf16 and f16; other types are an Error.
void read_f32(const TensorView& tensor, int64_t first, int64_t count, float* out);

/// Activations: [rows, cols] f32, rows `stride` elements apart.
struct Matrix {
  float* data = nullptr;
  int64_t rows = 0, cols = 0, stride = 0;

  float* row(int64_t i) const { return data + i * stride; }
  Matrix slice(int64_t first, int64_t count) const { return {data + first * stride, count, cols, stride}; }
  Matrix columns(int64_t first, int64_t count) const { return {data + first, rows, count, stride}; }
};

}  // namespace conan
