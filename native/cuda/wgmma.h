// What the four warps of a warpgroup do together on sm_90a (PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions"): products of
// tiles in shared memory, of which nobody knows more until he waits. Tiles are rows of 64 bf16, 128 bytes, in groups of eight that begin
// at multiples of 1024 bytes; within a row the 16-byte words are swizzled by the row's number, so that eight rows meet no bank twice.
// Under emulation each thread computes what it gets, as late as the waits allow.
#pragma once
#include "cuda/warp.h"

namespace conan::cuda {

#if !defined(__CUDACC__) || (defined(__CUDA_ARCH_FEAT_SM90_ALL))
#define CONAN_WARPGROUPS 1
#else
#define CONAN_WARPGROUPS 0
#endif

/// Where the 16-byte word `word` (0 to 7) of row `row` of a tile lies, in bytes.
__device__ __forceinline__ int swizzled(int row, int word) { return row * 128 + ((word ^ (row & 7)) << 4); }

/// A tile as the instruction takes it.
__device__ __forceinline__ uint64_t tile_of(const void* tile) {
#ifdef __CUDACC__
  // Address / 16, bytes between groups of eight rows / 16, swizzle of 128 bytes.
  const uint64_t at = __cvta_generic_to_shared(tile);
  return ((at & 0x3ffff) >> 4) | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
#else
  return reinterpret_cast<uint64_t>(tile);
#endif
}
/// The same, 16 columns on.
__device__ __forceinline__ uint64_t next_columns(uint64_t tile, int times) {
#ifdef __CUDACC__
  return tile + uint64_t(times * 32 >> 4);
#else
  return tile + uint64_t(times * 32);
#endif
}

#if CONAN_WARPGROUPS

/// What ordinary stores and copies of this thread have put into shared memory can be seen by the tensor cores.
__device__ __forceinline__ void show_to_tensor_cores() {
#ifdef __CUDACC__
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
#endif
}
/// Before the first product on sums that were touched.
__device__ __forceinline__ void begin_products() {
#ifdef __CUDACC__
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
#endif
}
__device__ __forceinline__ void commit_products() {
#ifdef __CUDACC__
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
#else
  emulated::block.fibers[emulated::self()].products.commit();
#endif
}
/// Until at most `left` of the groups that were committed are under way.
template <int left>
__device__ __forceinline__ void wait_for_products() {
#ifdef __CUDACC__
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(left) : "memory");
#else
  emulated::block.fibers[emulated::self()].products.wait(left);
#endif
}

/// c [64, 128] += a [64, 16] b [128, 16]^T. Of warp w: rows 16 w + g and + 8; c[4 j], c[4 j + 1]: row g, columns 8 j + 2 t and + 1;
/// c[4 j + 2], c[4 j + 3]: row g + 8.
__device__ __forceinline__ void multiply(float (&c)[64], uint64_t a, uint64_t b) {
#ifdef __CUDACC__
#define CONAN_SUMS(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]), "+f"(c[i + 6]), "+f"(c[i + 7])
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
      "%64, %65, 1, 1, 1, 0, 0;\n"
      : CONAN_SUMS(0), CONAN_SUMS(8), CONAN_SUMS(16), CONAN_SUMS(24), CONAN_SUMS(32), CONAN_SUMS(40), CONAN_SUMS(48), CONAN_SUMS(56)
      : "l"(a), "l"(b));
#undef CONAN_SUMS
#else
  const size_t thread = emulated::self() % 128;
  const auto word = [](uint64_t tile, size_t row, size_t k) {
    const uint64_t at = tile + row / 8 * 1024 + row % 8 * 128 + 2 * k;
    const uint64_t bits = *reinterpret_cast<const uint16_t*>(at ^ ((at >> 7 & 7) << 4));
    return __bfloat162float({uint16_t(bits)});
  };
  emulated::block.fibers[emulated::self()].products.add([=, &c] {
    const size_t g = thread / 32 * 16 + thread % 32 / 4, t = thread % 4;
    float rows[2][16];
    for (size_t i = 0; i < 32; ++i) rows[i / 16][i % 16] = word(a, g + i / 16 * 8, i % 16);
    for (size_t column = 0; column < 32; ++column) {
      float sums[2] = {};
      for (size_t k = 0; k < 16; ++k) {
        const float value = word(b, column / 2 * 8 + 2 * t + column % 2, k);
        for (size_t half = 0; half < 2; ++half) sums[half] += rows[half][k] * value;
      }
      for (size_t half = 0; half < 2; ++half) c[column / 2 * 4 + column % 2 + 2 * half] += sums[half];
    }
  });
#endif
}

#endif

}  // namespace conan::cuda
