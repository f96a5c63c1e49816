// What sm_90a has beyond warps (PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions", "Tensor copy", "mbarrier"): products of whole
// warpgroups on tiles in shared memory, of which nobody knows more until he waits; tiles that the copy engine brings from device memory by
// itself; and barriers that count arrivals and bytes. Tiles are rows of 128 bytes, 64 bf16 or 128 int8, in groups of eight that begin at multiples of
// 1024 bytes; within a row the 16-byte words are swizzled by the row's number, so that eight rows meet no bank twice. Under emulation
// each thread computes what it gets, and copies arrive, as late as the waits allow.
#pragma once
#include "cuda/warp.h"
#ifdef __CUDACC__
#include <cuda.h>
#endif
#include <type_traits>

namespace conan::cuda {

#if !defined(__CUDACC__) || (defined(__CUDA_ARCH_FEAT_SM90_ALL))
#define CONAN_WARPGROUPS 1
#else
#define CONAN_WARPGROUPS 0
#endif

/// A matrix of bf16 or of int8 that lies in device memory, in planes (heads; one, where it has none), by boxes of 128 bytes of columns and
/// some rows of one plane. What lies outside is zeros.
#ifdef __CUDACC__
using TileMap = CUtensorMap;
#define CONAN_GRID_CONSTANT __grid_constant__
#else
struct TileMap {
  char* data;
  int64_t columns, planes, rows, plane_stride, row_stride, box_rows, word;  // columns and strides in bytes; bytes of a number
};
#define CONAN_GRID_CONSTANT
#endif

/// `word`: bytes of a number, 4 (f32), 2 (bf16) or 1. Strides in numbers; those of rows and of planes are multiples of 16 bytes, and `data` begins at
/// one.
TileMap tile_map(const void* data, int word, int64_t columns, int64_t planes, int64_t rows, int64_t plane_stride, int64_t row_stride, int box_rows);

/// Counts arrivals and bytes; its phases are told apart by their parity.
struct Barrier {
#ifdef __CUDACC__
  uint64_t state;
#else
  int expected, missing;
  int64_t bytes;
  int parity;
  std::vector<std::function<void()> >* loads;
#endif
};

#if CONAN_WARPGROUPS

#ifdef __CUDACC__
__device__ __forceinline__ uint32_t shared_address(const void* at) { return uint32_t(__cvta_generic_to_shared(at)); }
#endif

// ---- barriers

/// For so many arrivals a phase. Others see it after show_barriers() and a barrier of the block (of the cluster).
__device__ __forceinline__ void begin(Barrier& barrier, int arrivals) {
#ifdef __CUDACC__
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
#else
  static std::map<Barrier*, std::vector<std::function<void()> > > loads;
  barrier = {arrivals, arrivals, 0, 0, &loads[&barrier]};
  barrier.loads->clear();
#endif
}
__device__ __forceinline__ void show_barriers() {
#ifdef __CUDACC__
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
#endif
}
#ifndef __CUDACC__
namespace emulated {
inline void settle(Barrier& barrier) {
  if (barrier.missing > 0 || barrier.bytes != 0) return;
  barrier.missing = barrier.expected;
  barrier.parity ^= 1;
}
}  // namespace emulated
#endif
__device__ __forceinline__ void arrive(Barrier& barrier) {
#ifdef __CUDACC__
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(&barrier)) : "memory");
#else
  --barrier.missing;
  emulated::settle(barrier);
#endif
}
/// At the same barrier of another block of the cluster. Says nothing to it about what this thread has stored in device memory, for which
/// it would have to wait.
__device__ __forceinline__ void arrive_at(Barrier& barrier, int block) {
#ifdef __CUDACC__
  asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\nmbarrier.arrive.shared::cluster.b64 _, [there];\n}\n" ::"r"(
                   shared_address(&barrier)),
               "r"(block)
               : "memory");
#else
  (void)block;
  arrive(barrier);
#endif
}
/// And so many bytes that copies will bring.
__device__ __forceinline__ void arrive_expecting(Barrier& barrier, int bytes) {
#ifdef __CUDACC__
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(&barrier)), "r"(bytes) : "memory");
#else
  barrier.bytes += bytes;
  --barrier.missing;
#endif
}
/// Until the phase of that parity is over (at the beginning: the one before the first, whose parity is 1, is).
__device__ __forceinline__ void wait_for(Barrier& barrier, int parity) {
#ifdef __CUDACC__
  asm volatile("{\n.reg .pred over;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n@over bra done;\nbra again;\ndone:\n}\n" ::"r"(
                   shared_address(&barrier)),
               "r"(parity)
               : "memory");
#else
  for (;;) {
    for (const auto& load : *barrier.loads) load();
    barrier.loads->clear();
    emulated::settle(barrier);
    if (barrier.parity != parity) return;
    emulated::wait(emulated::State::polling);
  }
#endif
}

// ---- clusters

__device__ __forceinline__ int rank_in_cluster() {
#ifdef __CUDACC__
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
  return int(rank);
#else
  return 0;
#endif
}
/// All threads of all blocks of the cluster.
__device__ __forceinline__ void sync_cluster() {
#ifdef __CUDACC__
  asm volatile("barrier.cluster.arrive;\nbarrier.cluster.wait;\n" ::: "memory");
#else
  __syncthreads();
#endif
}

// ---- copies

/// The box from a column, plane and row on, into this block's shared memory; its bytes count at the barrier.
__device__ __forceinline__ void load_box(void* to, const TileMap& map, int column, int plane, int row, Barrier& barrier) {
#ifdef __CUDACC__
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];\n" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(&barrier)), "r"(column), "r"(plane), "r"(row)
      : "memory");
#else
  barrier.loads->push_back([=, &barrier] {
    for (int64_t r = 0; r < map.box_rows; ++r)
      for (int64_t c = 0, at = column * map.word; c < 128; ++c, ++at) {
        const bool there = row + r < map.rows && at < map.columns && plane < map.planes;
        static_cast<char*>(to)[r * 128 + ((c / 16) ^ (r & 7)) * 16 + c % 16] =
            there ? map.data[(row + r) * map.row_stride + plane * map.plane_stride + at] : char(0);
      }
    barrier.bytes -= map.box_rows * 128;
  });
#endif
}
/// The same into every block of the cluster, at the same place, counting at the same barrier of each.
__device__ __forceinline__ void load_box_everywhere(void* to, const TileMap& map, int column, int plane, int row, Barrier& barrier, int blocks) {
#ifdef __CUDACC__
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;\n" ::"r"(
          shared_address(to)),
      "l"(&map), "r"(shared_address(&barrier)), "r"(column), "r"(plane), "r"(row), "h"(uint16_t((1 << blocks) - 1))
      : "memory");
#else
  (void)blocks;
  load_box(to, map, column, plane, row, barrier);
#endif
}
/// The other way: a box of shared memory, which show_to_tensor_cores() has shown, to where it belongs, or added to the f32 that lie there.
/// Goes on by itself; what the copies of this thread have not read yet must stay.
__device__ __forceinline__ void store_box(const TileMap& map, const void* from, int column, int plane, int row, bool add) {
#ifdef __CUDACC__
  if (add)
    asm volatile("cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4}], [%1];\n" ::"l"(&map),
                 "r"(shared_address(from)), "r"(column), "r"(plane), "r"(row)
                 : "memory");
  else
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];\n" ::"l"(&map), "r"(shared_address(from)),
                 "r"(column), "r"(plane), "r"(row)
                 : "memory");
#else
  emulated::block.fibers[emulated::self()].stores.add([=] {
    for (int64_t r = 0; r < map.box_rows && row + r < map.rows; ++r)
      for (int64_t c = 0, at = column * map.word; c < 128 && at < map.columns; c += map.word, at += map.word) {
        char* to = map.data + (row + r) * map.row_stride + plane * map.plane_stride + at;
        const char* word = static_cast<const char*>(from) + r * 128 + ((c / 16) ^ (r & 7)) * 16 + c % 16;
        if (add) *reinterpret_cast<float*>(to) += *reinterpret_cast<const float*>(word);
        else std::memcpy(to, word, size_t(map.word));
      }
  });
#endif
}
__device__ __forceinline__ void commit_stores() {
#ifdef __CUDACC__
  asm volatile("cp.async.bulk.commit_group;\n" ::: "memory");
#else
  emulated::block.fibers[emulated::self()].stores.commit();
#endif
}
/// Until at most `left` of the groups that this thread has committed have yet to read shared memory.
template <int left>
__device__ __forceinline__ void wait_for_stores() {
#ifdef __CUDACC__
  asm volatile("cp.async.bulk.wait_group.read %0;\n" ::"n"(left) : "memory");
#else
  emulated::block.fibers[emulated::self()].stores.wait(left);
#endif
}

/// Registers of a warpgroup's threads from here on: `more` than at the kernel's beginning, or fewer. All its warps say so.
template <int registers, bool more>
__device__ __forceinline__ void set_registers() {
#ifdef __CUDACC__
  if constexpr (more) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(registers));
  else asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(registers));
#endif
}

// ---- products

/// A tile as products take it: rows of 128 bytes along K. `next`: bytes to the next 64 columns, for tiles whose rows lie along K instead.
__device__ __forceinline__ uint64_t tile_of(const void* tile, int next = 16) {
#ifdef __CUDACC__
  // Address / 16, bytes to the next 64 columns / 16, bytes between groups of eight rows / 16, swizzle of 128 bytes.
  return uint64_t((shared_address(tile) & 0x3ffff) >> 4) | uint64_t(next >> 4) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
#else
  return reinterpret_cast<uint64_t>(tile) | uint64_t(next >> 4) << 48;
#endif
}
/// The same so many bytes on: 32 for the next 16 columns, 2048 for the next 16 rows.
__device__ __forceinline__ uint64_t further(uint64_t tile, int bytes) {
#ifdef __CUDACC__
  return tile + uint64_t(bytes >> 4);
#else
  return tile + uint64_t(bytes);
#endif
}

/// What ordinary stores of this thread have put into shared memory can be seen by the tensor cores and by the copy engine.
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

/// Behind a wait: what the products have put into the sums is there, and nobody reads them earlier.
template <class Sum, int count>
__device__ __forceinline__ void settled(Sum (&c)[count]) {
#ifdef __CUDACC__
#pragma unroll
  for (int i = 0; i < count; ++i)
    if constexpr (std::is_integral_v<Sum>) asm volatile("" : "+r"(c[i])::"memory");
    else asm volatile("" : "+f"(c[i])::"memory");
#else
  (void)c;
#endif
}

/// What follows from the value is computed where it is wanted, and not held in registers through the loops around.
__device__ __forceinline__ void not_ahead(int& value) {
#ifdef __CUDACC__
  asm volatile("" : "+r"(value));
#else
  (void)value;
#endif
}

#ifndef __CUDACC__
namespace emulated {
/// A word of a tile: row `row`, column k; or, of a tile whose rows lie along K, the other way round.
inline float word_of(uint64_t tile, size_t row, size_t k, bool along_k = false) {
  const uint64_t start = tile << 16 >> 16, next = (tile >> 48) << 4;
  const uint64_t at = along_k ? start + row / 64 * next + k * 128 + 2 * (row % 64) : start + row * 128 + 2 * k;
  return __bfloat162float({*reinterpret_cast<const uint16_t*>(at ^ ((at >> 7 & 7) << 4))});
}
inline int byte_of(uint64_t tile, size_t row, size_t k) {
  const uint64_t at = (tile << 16 >> 16) + row * 128 + k;
  return *reinterpret_cast<const int8_t*>(at ^ ((at >> 7 & 7) << 4));
}
template <int n, class Sum, class Left, class Right>
void add_products(Sum (&c)[n / 2], bool add, size_t depth, const Left& left, const Right& right) {
  const size_t t = self() % 4;
  for (size_t column = 0; column < n / 4; ++column) {
    Sum sums[2] = {};
    for (size_t k = 0; k < depth; ++k) {
      const Sum value = right(column / 2 * 8 + 2 * t + column % 2, k);
      for (size_t half = 0; half < 2; ++half) sums[half] += left(half, k) * value;
    }
    for (size_t half = 0; half < 2; ++half) {
      Sum& to = c[column / 2 * 4 + column % 2 + 2 * half];
      to = (add ? to : 0) + sums[half];
    }
  }
}
}  // namespace emulated
#endif

#ifdef __CUDACC__
#define CONAN_REGISTERS_0_15 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define CONAN_REGISTERS_16_31 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define CONAN_REGISTERS_32_63 \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define CONAN_REGISTERS_64_127                                                                                                       \
  "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95," \
  "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,"   \
  "%122,%123,%124,%125,%126,%127"
#define CONAN_SUMS(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]), "+f"(c[i + 6]), "+f"(c[i + 7])
#define CONAN_SUMS_16(i) CONAN_SUMS(i), CONAN_SUMS(i + 8)
#define CONAN_SUMS_64(i) CONAN_SUMS_16(i), CONAN_SUMS_16(i + 16), CONAN_SUMS_16(i + 32), CONAN_SUMS_16(i + 48)
#define CONAN_WHOLE(i) "+r"(c[i]), "+r"(c[i + 1]), "+r"(c[i + 2]), "+r"(c[i + 3]), "+r"(c[i + 4]), "+r"(c[i + 5]), "+r"(c[i + 6]), "+r"(c[i + 7])
#define CONAN_WHOLE_16(i) CONAN_WHOLE(i), CONAN_WHOLE(i + 8)
#define CONAN_WHOLE_64(i) CONAN_WHOLE_16(i), CONAN_WHOLE_16(i + 16), CONAN_WHOLE_16(i + 32), CONAN_WHOLE_16(i + 48)
#define CONAN_PRODUCT(n) "{\n.reg .pred add;\nsetp.ne.b32 add, %" n ", 0;\nwgmma.mma_async.sync.aligned.m64n"
#endif

#ifdef __CUDACC__
#define CONAN_MULTIPLY(kind, tail, SUMS_16, SUMS_64)                                                                                \
  if constexpr (n == 256)                                                                                                           \
    asm volatile(CONAN_PRODUCT("130") "256" kind " {" CONAN_REGISTERS_0_15 "," CONAN_REGISTERS_16_31 "," CONAN_REGISTERS_32_63      \
                                      "," CONAN_REGISTERS_64_127 "}, %128, %129, add" tail ";\n}\n"                                 \
                 : SUMS_64(0), SUMS_64(64)                                                                                          \
                 : "l"(a), "l"(b), "r"(int(add)));                                                                                  \
  else if constexpr (n == 128)                                                                                                      \
    asm volatile(CONAN_PRODUCT("66") "128" kind " {" CONAN_REGISTERS_0_15 "," CONAN_REGISTERS_16_31 "," CONAN_REGISTERS_32_63       \
                                     "}, %64, %65, add" tail ";\n}\n"                                                               \
                 : SUMS_64(0)                                                                                                       \
                 : "l"(a), "l"(b), "r"(int(add)));                                                                                  \
  else if constexpr (n == 64)                                                                                                       \
    asm volatile(CONAN_PRODUCT("34") "64" kind " {" CONAN_REGISTERS_0_15 "," CONAN_REGISTERS_16_31 "}, %32, %33, add" tail ";\n}\n" \
                 : SUMS_16(0), SUMS_16(16)                                                                                          \
                 : "l"(a), "l"(b), "r"(int(add)));                                                                                  \
  else                                                                                                                              \
    asm volatile(CONAN_PRODUCT("18") "32" kind " {" CONAN_REGISTERS_0_15 "}, %16, %17, add" tail ";\n}\n"                           \
                 : SUMS_16(0)                                                                                                       \
                 : "l"(a), "l"(b), "r"(int(add)))
#endif

/// c [64, n] = a [64, 32 bytes] b [n, 32 bytes]^T, or += it: 16 bf16 along K with sums of float, 32 int8 with whole ones. Of warp w: rows
/// 16 w + g and + 8; c[4 j], c[4 j + 1]: row g, columns 8 j + 2 t and + 1; c[4 j + 2], c[4 j + 3]: row g + 8. `b_along`: a tile b (of bf16) whose
/// rows lie along K, [16, n]; `a_along`: a as well, [16, 64].
template <int n, bool a_along = false, bool b_along = false, class Sum>
__device__ __forceinline__ void multiply(Sum (&c)[n / 2], uint64_t a, uint64_t b, bool add) {
  constexpr bool whole = std::is_integral_v<Sum>;
  static_assert(b_along ? !whole : !a_along);
#ifdef __CUDACC__
  if constexpr (whole) {
    CONAN_MULTIPLY("k32.s32.s8.s8", "", CONAN_WHOLE_16, CONAN_WHOLE_64);
  } else if constexpr (a_along) {
    CONAN_MULTIPLY("k16.f32.bf16.bf16", ", 1, 1, 1, 1", CONAN_SUMS_16, CONAN_SUMS_64);
  } else if constexpr (b_along) {
    CONAN_MULTIPLY("k16.f32.bf16.bf16", ", 1, 1, 0, 1", CONAN_SUMS_16, CONAN_SUMS_64);
  } else {
    CONAN_MULTIPLY("k16.f32.bf16.bf16", ", 1, 1, 0, 0", CONAN_SUMS_16, CONAN_SUMS_64);
  }
#else
  const size_t first = emulated::self() % 128 / 32 * 16 + emulated::self() % 32 / 4;
  emulated::block.fibers[emulated::self()].products.add([=, &c] {
    const auto word = [](uint64_t tile, size_t row, size_t k, bool along) -> Sum {
      if constexpr (whole) return emulated::byte_of(tile, row, k);
      else return emulated::word_of(tile, row, k, along);
    };
    emulated::add_products<n>(
        c, add, whole ? 32 : 16, [=](size_t half, size_t k) { return word(a, first + 8 * half, k, a_along); },
        [=](size_t column, size_t k) { return word(b, column, k, b_along); });
  });
#endif
}

/// c [64, n] = a [64, 16] b [16, n], or += it, with a in registers as mma_bf16 takes it, and a tile b whose rows lie along K.
template <int n>
__device__ __forceinline__ void multiply_held(float (&c)[n / 2], const uint32_t (&a)[4], uint64_t b, bool add) {
#ifdef __CUDACC__
  if constexpr (n == 128)
    asm volatile(CONAN_PRODUCT("69") "128k16.f32.bf16.bf16 {" CONAN_REGISTERS_0_15 "," CONAN_REGISTERS_16_31 "," CONAN_REGISTERS_32_63
                                     "}, {%64,%65,%66,%67}, %68, add, 1, 1, 1;\n}\n"
                 : CONAN_SUMS_64(0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)));
  else
    asm volatile(CONAN_PRODUCT("37") "64k16.f32.bf16.bf16 {" CONAN_REGISTERS_0_15 "," CONAN_REGISTERS_16_31
                                     "}, {%32,%33,%34,%35}, %36, add, 1, 1, 1;\n}\n"
                 : CONAN_SUMS_16(0), CONAN_SUMS_16(16)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)));
#else
  const size_t self = emulated::self();
  uint32_t own[4] = {a[0], a[1], a[2], a[3]};
  std::memcpy(emulated::block.slots[self], own, sizeof own);
  emulated::wait_for_warp();
  std::array<std::array<float, 16>, 2> rows;
  for (size_t t = 0; t < 4; ++t) {
    uint32_t words[4];
    std::memcpy(words, emulated::block.slots[self / 4 * 4 + t], sizeof words);
    for (size_t i = 0; i < 8; ++i) rows[i / 2 % 2][i / 4 * 8 + 2 * t + i % 2] = __bfloat162float({uint16_t(words[i / 2] >> (i % 2 * 16))});
  }
  emulated::wait_for_warp();
  emulated::block.fibers[self].products.add([=, &c] {
    emulated::add_products<n>(
        c, add, 16, [&](size_t half, size_t k) { return rows[half][k]; },
        [=](size_t column, size_t k) { return emulated::word_of(b, column, k, true); });
  });
#endif
}

#ifdef __CUDACC__
#undef CONAN_REGISTERS_0_15
#undef CONAN_REGISTERS_16_31
#undef CONAN_REGISTERS_32_63
#undef CONAN_REGISTERS_64_127
#undef CONAN_SUMS
#undef CONAN_SUMS_16
#undef CONAN_SUMS_64
#undef CONAN_WHOLE
#undef CONAN_WHOLE_16
#undef CONAN_WHOLE_64
#undef CONAN_PRODUCT
#undef CONAN_MULTIPLY
#endif

#endif

}  // namespace conan::cuda
