#include "base/tensor.h"

#include "base/error.h"

namespace conan {

namespace {
struct DtypeRow {
  size_t size;
  const char* name;
};
// In the order of enum Dtype.
constexpr DtypeRow kDtypes[] = {{4, "float32"}, {2, "bfloat16"}, {2, "float16"}, {8, "float64"},     {1, "int8"},
                                {1, "uint8"},   {2, "int16"},    {2, "uint16"},  {4, "int32"},       {4, "uint32"},
                                {8, "int64"},   {8, "uint64"},   {1, "bool"},    {1, "float8_e4m3"}, {1, "float8_e5m2"}};
}  // namespace

size_t dtype_size(Dtype dtype) { return kDtypes[int(dtype)].size; }
const char* dtype_name(Dtype dtype) { return kDtypes[int(dtype)].name; }

float f16_to_f32(uint16_t bits) {
  uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = (bits >> 10) & 31, mantissa = bits & 1023, wide;
  if (exponent == 31) {
    wide = sign | 0x7f800000 | (mantissa << 13);
  } else if (exponent) {
    wide = sign | ((exponent + 112) << 23) | (mantissa << 13);
  } else if (!mantissa) {
    wide = sign;
  } else {  // subnormal: shift until the leading one appears
    exponent = 113;
    while (!(mantissa & 1024)) mantissa <<= 1, --exponent;
    wide = sign | (exponent << 23) | ((mantissa & 1023) << 13);
  }
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

uint16_t f32_to_f16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  uint32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);  // rounds to 65520 or more: infinity
  if (magnitude < 0x38800000) {                                 // subnormal in f16
    if (magnitude < 0x33000000) return uint16_t(sign);
    uint32_t shift = 126 - (magnitude >> 23), mantissa = (magnitude & 0x7fffff) | 0x800000;
    uint32_t half = mantissa >> shift, rest = mantissa & ((1u << shift) - 1), middle = 1u << (shift - 1);
    return uint16_t(sign | (half + (rest > middle || (rest == middle && (half & 1)))));
  }
  uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
  return uint16_t(sign | ((rounded - 0x38000000) >> 13));
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

void read_f32(const TensorView& tensor, int64_t first, int64_t count, float* out) {
  const char* bytes = static_cast<const char*>(tensor.data);
  switch (tensor.dtype) {
    case Dtype::f32: std::memcpy(out, bytes + first * 4, size_t(count) * 4); return;
    case Dtype::bf16:
    case Dtype::f16: {
      const bool bf16 = tensor.dtype == Dtype::bf16;
      for (int64_t i = 0; i < count; ++i) {
        uint16_t half;
        std::memcpy(&half, bytes + (first + i) * 2, 2);
        out[i] = bf16 ? bf16_to_f32(half) : f16_to_f32(half);
      }
      return;
    }
    default: fail("UNSUPPORTED_DTYPE", "expected a float32, bfloat16 or float16 tensor, got ", dtype_name(tensor.dtype));
  }
}

}  // namespace conan
