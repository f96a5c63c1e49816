// As much of CUDA as the kernels of this folder use, on the CPU: so that the ops test table checks their indices, barriers and fragments
// where there is no GPU. A block's threads are fibers that take turns; blocks run one after the other. What a GPU does later is done as late
// as can be: a launch when somebody waits for the stream, a copy past the registers when its thread waits for it, so that who forgets to
// wait sees what was there before. It says nothing about speed, and nothing about races that a real warp would have.
#pragma once
#include <csetjmp>
#include <ucontext.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __restrict__

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint2 {
  uint32_t x, y;
};
struct int2 {
  int x, y;
};
struct int4 {
  int x, y, z, w;
};
struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};
struct __nv_bfloat16 {
  uint16_t bits;
};
struct __half {
  uint16_t bits;
};

namespace conan::cuda::emulated {

enum class State { running, at_warp, at_block, polling, ended };

/// What a thread has begun and not waited for: groups in their order, the last one still open.
struct Pending {
  std::vector<std::vector<std::function<void()>>> groups{1};

  void add(std::function<void()> work) { groups.back().push_back(std::move(work)); }
  void commit() { groups.emplace_back(); }
  /// Until at most `left` of the committed ones are under way.
  void wait(size_t left) {
    for (; groups.size() > left + 1; groups.erase(groups.begin()))
      for (const auto& work : groups.front()) work();
  }
};

/// A context begins a fiber; from then on jumps switch, which, unlike swapcontext, ask nothing of the kernel.
struct Fiber {
  Pending copies, products, stores;
  ucontext_t context;
  jmp_buf place;
  bool begun;
  std::unique_ptr<char[]> stack;
  State state;
  dim3 thread;
};

struct Block {
  std::vector<Fiber> fibers;
  jmp_buf scheduler;
  size_t current = 0;
  uint64_t slots[1024][4];  // what lanes hand to one another
  std::function<void()> body;
};
inline Block block;

inline void wait(State state) {
  Fiber& fiber = block.fibers[block.current];
  fiber.state = state;
  if (_setjmp(fiber.place) == 0) _longjmp(block.scheduler, 1);
}
inline void wait_for_warp() { wait(State::at_warp); }

}  // namespace conan::cuda::emulated

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace conan::cuda::emulated {

inline void entry() {
  block.body();
  block.fibers[block.current].state = State::ended;
  _longjmp(block.scheduler, 1);
}

/// Until it waits or ends.
inline void resume(Fiber& fiber) {
  if (_setjmp(block.scheduler)) return;
  if (fiber.begun) _longjmp(fiber.place, 1);
  fiber.begun = true;
  setcontext(&fiber.context);
}

inline void run_block(size_t threads) {
  constexpr size_t stack_bytes = 1 << 16;
  if (block.fibers.size() < threads) block.fibers.resize(threads);
  for (size_t i = 0; i < threads; ++i) {
    Fiber& fiber = block.fibers[i];
    if (!fiber.stack) fiber.stack.reset(new char[stack_bytes]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = stack_bytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, entry, 0);
    fiber.state = State::running;
    fiber.begun = false;
    fiber.copies = fiber.products = fiber.stores = {};
    fiber.thread = dim3(unsigned(i % blockDim.x), unsigned(i / blockDim.x));
  }
  for (;;) {
    bool all_ended = true;
    for (size_t warp = 0; warp < threads; warp += 32) {
      const size_t end = std::min(threads, warp + 32);
      for (bool moved = true; moved;) {
        moved = false;
        for (size_t i = warp; i < end; ++i) {
          if (block.fibers[i].state != State::running) continue;
          block.current = i;
          threadIdx = block.fibers[i].thread;
          resume(block.fibers[i]);
          moved = true;
        }
        bool together = true, any = false;
        for (size_t i = warp; i < end; ++i)
          together &= block.fibers[i].state == State::at_warp || block.fibers[i].state == State::ended,
              any |= block.fibers[i].state == State::at_warp;
        if (together && any) {
          for (size_t i = warp; i < end; ++i)
            if (block.fibers[i].state == State::at_warp) block.fibers[i].state = State::running;
          moved = true;
        }
      }
      for (size_t i = warp; i < end; ++i) all_ended &= block.fibers[i].state == State::ended;
    }
    if (all_ended) return;
    // Who looks again and again goes on; all others wait for the whole block, once nobody else moves.
    State next = State::at_block;
    for (size_t i = 0; i < threads; ++i)
      if (block.fibers[i].state == State::polling) next = State::polling;
    for (size_t i = 0; i < threads; ++i)
      if (block.fibers[i].state == next) block.fibers[i].state = State::running;
      else if (block.fibers[i].state == State::at_warp && next == State::at_block) std::abort();  // lanes of one warp at different barriers
  }
}

/// The stream: what was asked for and not waited for. There is one, but for those that a thread records.
using Work = std::vector<std::function<void()>>;
inline Work stream;
inline std::recursive_mutex stream_lock;
inline thread_local Work* recorded = nullptr;  // its address is its stream

inline void later(void* of, std::function<void()> work) {
  if (recorded && of == recorded) return recorded->push_back(std::move(work));
  std::lock_guard lock(stream_lock);
  stream.push_back(std::move(work));
}

inline void drain() {
  std::lock_guard lock(stream_lock);
  for (size_t i = 0; i < stream.size(); ++i) stream[i]();
  stream.clear();
}

template <class Kernel, class... Args>
void launch(void* of, Kernel kernel, dim3 grid, dim3 threads, Args... args) {
  later(of, [=] {
    gridDim = grid;
    blockDim = threads;
    block.body = [=] { kernel(args...); };
    for (unsigned z = 0; z < grid.z; ++z)
      for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; ++x) {
          blockIdx = dim3(x, y, z);
          run_block(size_t(threads.x) * threads.y);
        }
  });
}

inline size_t self() { return block.current; }
inline size_t lane_of(size_t lane) { return self() / 32 * 32 + lane; }

template <class T>
T exchange(T value, size_t lane) {
  std::memcpy(block.slots[self()], &value, sizeof value);
  wait_for_warp();
  T out;
  std::memcpy(&out, block.slots[lane_of(lane)], sizeof out);
  wait_for_warp();
  return out;
}

}  // namespace conan::cuda::emulated

inline void __syncthreads() { conan::cuda::emulated::wait(conan::cuda::emulated::State::at_block); }
inline void __syncwarp() { conan::cuda::emulated::wait_for_warp(); }
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return conan::cuda::emulated::exchange(value, (conan::cuda::emulated::self() % 32) ^ size_t(mask));
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return conan::cuda::emulated::exchange(value, size_t(lane));
}
inline float __bfloat162float(__nv_bfloat16 x) {
  const uint32_t wide = uint32_t(x.bits) << 16;
  float out;
  std::memcpy(&out, &wide, 4);
  return out;
}
inline int atomicCAS(int* at, int expected, int value) {
  const int before = *at;
  if (before == expected) *at = value;
  return before;
}

// ---- memory and the one stream

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorMemoryAllocation, cudaErrorInvalidValue };
enum cudaMemcpyKind { cudaMemcpyDefault };
enum cudaMemoryType { cudaMemoryTypeUnregistered, cudaMemoryTypeHost, cudaMemoryTypeDevice, cudaMemoryTypeManaged };
struct cudaPointerAttributes {
  cudaMemoryType type;
};
constexpr int cudaMemAttachGlobal = 1;

namespace conan::cuda::emulated {
inline std::map<const char*, size_t> allocations;
inline std::mutex allocations_lock;

/// Bytes: CONAN_EMULATED_MEMORY, or as good as any number; and those that are taken.
inline size_t memory() {
  const char* limit = std::getenv("CONAN_EMULATED_MEMORY");
  return limit ? size_t(std::atoll(limit)) : size_t(1) << 40;
}
inline size_t taken() {
  std::lock_guard lock(allocations_lock);
  size_t sum = 0;
  for (const auto& [at, bytes] : allocations) sum += bytes;
  return sum;
}

inline std::map<const char*, size_t> pinned;  // the host's, but read by the device when it comes to it

inline bool lies_in(const std::map<const char*, size_t>& ranges, const void* pointer) {
  std::lock_guard lock(allocations_lock);
  auto at = ranges.upper_bound(static_cast<const char*>(pointer));
  if (at == ranges.begin()) return false;
  --at;
  return static_cast<const char*>(pointer) < at->first + at->second;
}
inline bool is_device(const void* pointer) { return lies_in(allocations, pointer); }

inline void forget(void* memory) {
  std::lock_guard lock(allocations_lock);
  allocations.erase(static_cast<char*>(memory));
}

inline thread_local int device = -1;  // a real one's would be 0: the wrong GPU, where there are two
inline void require_device() {
  if (device < 0) std::abort();
}
}  // namespace conan::cuda::emulated

inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) {
  conan::cuda::emulated::device = device;
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
  conan::cuda::emulated::drain();
  return cudaSuccess;
}
inline cudaError_t cudaMemGetInfo(size_t* left, size_t* all) {
  conan::cuda::emulated::require_device();
  const size_t taken = conan::cuda::emulated::taken();
  *all = conan::cuda::emulated::memory();
  *left = *all > taken ? *all - taken : 0;
  return cudaSuccess;
}
inline cudaError_t cudaMallocManaged(void** out, size_t bytes, int) {
  conan::cuda::emulated::require_device();
  if (conan::cuda::emulated::taken() + bytes > conan::cuda::emulated::memory()) return cudaErrorMemoryAllocation;
  *out = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::lock_guard lock(conan::cuda::emulated::allocations_lock);
  conan::cuda::emulated::allocations[static_cast<char*>(*out)] = bytes;
  return *out ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaMallocHost(void** out, size_t bytes) {
  *out = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::lock_guard lock(conan::cuda::emulated::allocations_lock);
  conan::cuda::emulated::pinned[static_cast<char*>(*out)] = bytes;
  return *out ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFreeHost(void* memory) {
  {
    std::lock_guard lock(conan::cuda::emulated::allocations_lock);
    conan::cuda::emulated::pinned.erase(static_cast<char*>(memory));
  }
  std::free(memory);
  return cudaSuccess;
}
using cudaEvent_t = void*;
constexpr unsigned cudaEventDisableTiming = 2;
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t*, unsigned) { return cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaStreamSynchronize(nullptr); }
inline cudaError_t cudaFree(void* memory) {
  conan::cuda::emulated::require_device();
  conan::cuda::emulated::drain();
  conan::cuda::emulated::forget(memory);
  std::free(memory);
  return cudaSuccess;
}
inline cudaError_t cudaMalloc(void** out, size_t bytes) { return cudaMallocManaged(out, bytes, 0); }
inline cudaError_t cudaMallocAsync(void** out, size_t bytes, cudaStream_t) { return cudaMallocManaged(out, bytes, 0); }
inline cudaError_t cudaFreeAsync(void* memory, cudaStream_t stream) {
  conan::cuda::emulated::forget(memory);
  conan::cuda::emulated::later(stream, [=] { std::free(memory); });
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  conan::cuda::emulated::later(stream, [=] { std::memset(to, value, bytes); });
  return cudaSuccess;
}
inline cudaError_t cudaMemset2DAsync(void* to, size_t pitch, int value, size_t width, size_t height, cudaStream_t stream) {
  conan::cuda::emulated::later(stream, [=] {
    for (size_t i = 0; i < height; ++i) std::memset(static_cast<char*>(to) + i * pitch, value, width);
  });
  return cudaSuccess;
}
/// From pageable memory: its bytes have been taken when this returns. To pageable memory: they are there when this returns.
inline cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height, cudaMemcpyKind,
                                     cudaStream_t stream) {
  using namespace conan::cuda::emulated;
  const auto copy = [=](const void* source, size_t pitch) {
    for (size_t i = 0; i < height; ++i) std::memcpy(static_cast<char*>(to) + i * to_pitch, static_cast<const char*>(source) + i * pitch, width);
  };
  if (!is_device(to) && !lies_in(pinned, to)) {
    drain();
    copy(from, from_pitch);
  } else if (is_device(from) || lies_in(pinned, from)) {
    later(stream, [=] { copy(from, from_pitch); });
  } else {
    auto taken = std::make_shared<std::vector<char>>(width * height);
    for (size_t i = 0; i < height; ++i) std::memcpy(taken->data() + i * width, static_cast<const char*>(from) + i * from_pitch, width);
    later(stream, [=] { copy(taken->data(), width); });
  }
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}
// Recordings: only of work whose stream is the thread's own.
using cudaGraph_t = conan::cuda::emulated::Work*;
using cudaGraphExec_t = cudaGraph_t;
constexpr unsigned cudaStreamNonBlocking = 1;
enum cudaStreamCaptureMode { cudaStreamCaptureModeRelaxed };
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* out, unsigned) {
  *out = new conan::cuda::emulated::Work;
  return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete static_cast<conan::cuda::emulated::Work*>(stream);
  return cudaSuccess;
}
inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  conan::cuda::emulated::recorded = static_cast<conan::cuda::emulated::Work*>(stream);
  return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* out) {
  conan::cuda::emulated::recorded = nullptr;
  *out = new conan::cuda::emulated::Work(std::move(*static_cast<conan::cuda::emulated::Work*>(stream)));
  return cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* out, cudaGraph_t graph, unsigned long long) {
  *out = new conan::cuda::emulated::Work(*graph);
  return cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  for (const auto& work : *graph) conan::cuda::emulated::later(stream, work);
  return cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return cudaGraphDestroy(graph); }

inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* out, const void* pointer) {
  out->type = conan::cuda::emulated::is_device(pointer) ? cudaMemoryTypeManaged : cudaMemoryTypeUnregistered;
  return cudaSuccess;
}
