// What a warp does together: tensor-core products, loads of their fragments, copies past the registers, sums. One lane's view; lane l has
// g = l / 4 and t = l % 4. Real instructions on a GPU (sm_80 and later), the same by hand under emulation.
#pragma once
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "cuda/emulate.h"
#endif
#include <cstdint>
#include <cstring>

namespace conan::cuda {

constexpr unsigned full_warp = 0xffffffffu;

/// Shared memory that a launch was given, from a multiple of 1024 bytes on.
#ifdef __CUDACC__
#define CONAN_LAUNCH_MEMORY(name) extern __shared__ __align__(1024) unsigned char name[]
#else
#define CONAN_LAUNCH_MEMORY(name)                              \
  alignas(1024) static unsigned char name##_memory[227 << 10]; \
  unsigned char* const name = name##_memory
#endif

/// What is the same for a whole warp, so that the compiler knows it: what follows from it goes to uniform registers, where products by warpgroups
/// want where their tiles are.
__device__ __forceinline__ int of_warp(int value) { return __shfl_sync(full_warp, value, 0); }

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int mask = 16; mask; mask >>= 1) value += __shfl_xor_sync(full_warp, value, mask);
  return value;
}
/// Of all values, by a block that is one warp; lanes take every 32nd.
__device__ __forceinline__ double warp_sum_of(const double* values, int64_t count) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += 32) sum += values[i];
  return warp_sum(sum);
}
__device__ __forceinline__ float warp_max(float value) {
  for (int mask = 16; mask; mask >>= 1) {
    const float other = __shfl_xor_sync(full_warp, value, mask);
    value = value > other ? value : other;
  }
  return value;
}

/// Two numbers rounded to the nearest bf16, ties to even, the first in the low half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
#ifdef __CUDACC__
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
#else
  auto round = [](float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return (bits >> 16) | 0x40;
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  };
  return round(low) | round(high) << 16;
#endif
}

/// The numbers of such a word.
__device__ __forceinline__ float2 unpack_bf16(uint32_t both) {
  const uint32_t words[2] = {both << 16, both & 0xffff0000u};
  float2 out;
  memcpy(&out, words, sizeof out);
  return out;
}
__device__ __forceinline__ float rounded_to_bf16(float x) { return unpack_bf16(pack_bf16(x, 0)).x; }

#ifndef __CUDACC__
namespace emulated {
/// The 16 x 8 sums of products of a warp's fragments: product(a, b) of two words that lie at the same k.
template <class Sum, class Product>
void multiply_fragments(Sum (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const Product& product) {
  struct Fragment {
    uint32_t a[4], b[2];
  };
  const Fragment own{{a[0], a[1], a[2], a[3]}, {b0, b1}};
  static_assert(sizeof own <= sizeof block.slots[0]);
  std::memcpy(block.slots[self()], &own, sizeof own);
  wait_for_warp();
  const size_t lane = self() % 32;
  auto of = [](size_t other) {
    Fragment out;
    std::memcpy(&out, block.slots[lane_of(other)], sizeof out);
    return out;
  };
  for (int i = 0; i < 4; ++i) {
    const size_t row = lane / 4, column = lane % 4 * 2 + size_t(i % 2);
    Sum sum = 0;
    for (int half = 0; half < 2; ++half)
      for (size_t t = 0; t < 4; ++t) sum += product(of(row * 4 + t).a[i / 2 + half * 2], of(column * 4 + t).b[half]);
    c[i] += sum;
  }
  wait_for_warp();
}
}  // namespace emulated
#endif

/// c [16, 8] += a [16, 16] b [16, 8]. c0, c1: row g, columns 2t, 2t + 1; c2, c3: row g + 8. a0: row g, k 2t, 2t + 1; a1: row g + 8; a2, a3:
/// the same at k + 8. b0: column g, k 2t, 2t + 1; b1: k + 8.
__device__ __forceinline__ void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef __CUDACC__
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  auto half = [](uint32_t word, int i) { return __bfloat162float({uint16_t(i ? word >> 16 : word)}); };
  emulated::multiply_fragments(c, a, b0, b1, [&](uint32_t x, uint32_t y) { return half(x, 0) * half(y, 0) + half(x, 1) * half(y, 1); });
#endif
}

/// The same with four bytes in a word instead of two numbers, so that k goes to 32.
__device__ __forceinline__ void mma_i8(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef __CUDACC__
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
               : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  emulated::multiply_fragments(c, a, b0, b1, [](uint32_t x, uint32_t y) {
    int sum = 0;
    for (int i = 0; i < 4; ++i) sum += int8_t(x >> (8 * i)) * int8_t(y >> (8 * i));
    return sum;
  });
#endif
}

/// Four 8 x 8 matrices of 16-bit words: lane l names the row l % 8 of matrix l / 8 and gets words 2t, 2t + 1 of row g of each.
__device__ __forceinline__ void load_matrices(uint32_t (&out)[4], const void* row) {
#ifdef __CUDACC__
  const uint32_t at = uint32_t(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n" : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(at));
#else
  using namespace emulated;
  std::memcpy(block.slots[self()], &row, sizeof row);
  wait_for_warp();
  const size_t lane = self() % 32;
  for (size_t i = 0; i < 4; ++i) {
    const char* from;
    std::memcpy(&from, block.slots[lane_of(8 * i + lane / 4)], sizeof from);
    std::memcpy(&out[i], from + lane % 4 * 4, 4);
  }
  wait_for_warp();
#endif
}

/// The same with each matrix transposed: words (2t, g) and (2t + 1, g).
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&out)[4], const void* row) {
#ifdef __CUDACC__
  const uint32_t at = uint32_t(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(at));
#else
  using namespace emulated;
  std::memcpy(block.slots[self()], &row, sizeof row);
  wait_for_warp();
  const size_t lane = self() % 32;
  for (size_t i = 0; i < 4; ++i) {
    uint16_t words[2];
    for (size_t k = 0; k < 2; ++k) {
      const char* from;
      std::memcpy(&from, block.slots[lane_of(8 * i + lane % 4 * 2 + k)], sizeof from);
      std::memcpy(&words[k], from + lane / 4 * 2, 2);
    }
    std::memcpy(&out[i], words, 4);
  }
  wait_for_warp();
#endif
}

/// 16 bytes from device to shared memory without waiting; zeros where `there` is false.
__device__ __forceinline__ void copy_16(void* to, const void* from, bool there) {
#ifdef __CUDACC__
  const uint32_t at = uint32_t(__cvta_generic_to_shared(to));
  const int bytes = there ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(at), "l"(from), "r"(bytes));
#else
  emulated::block.fibers[emulated::self()].copies.add([=] {
    if (there) std::memcpy(to, from, 16);
    else std::memset(to, 0, 16);
  });
#endif
}
__device__ __forceinline__ void commit_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;\n");
#else
  emulated::block.fibers[emulated::self()].copies.commit();
#endif
}
/// Until at most `left` of the groups that were committed are under way.
template <int left>
__device__ __forceinline__ void wait_for_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;\n" ::"n"(left));
#else
  emulated::block.fibers[emulated::self()].copies.wait(left);
#endif
}

}  // namespace conan::cuda
