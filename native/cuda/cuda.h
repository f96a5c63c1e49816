// What the files of this folder share: the device, launches, and how arguments get there. An argument may lie in host memory (positions,
// norm weights, a test's matrices) or in memory of allocate(): Arguments copies what the device cannot see, and copies results back.
#pragma once
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "cuda/recording.h"
#include "cuda/warp.h"
#include "ops/ops.h"

namespace conan::cuda {

/// Ranges of addresses of the host, and where a device finds what lies there.
class Ranges {
 public:
  /// `owner`: what the device's memory lives with, where somebody may want it longer than the host has its own.
  void add(const void* begin, size_t bytes, const void* device, std::shared_ptr<const void> owner = {}) {
    std::lock_guard guard(lock_);
    ranges_[static_cast<const char*>(begin)] = {bytes, static_cast<const char*>(device), std::move(owner)};
  }
  void remove(const void* begin) {
    std::lock_guard guard(lock_);
    ranges_.erase(static_cast<const char*>(begin));
  }
  /// Of [pointer, pointer + bytes), which lies in one range; null: in none.
  const void* find(const void* pointer, size_t bytes, std::shared_ptr<const void>* owner = nullptr) const {
    std::shared_lock guard(lock_);
    const auto* at = static_cast<const char*>(pointer);
    auto after = ranges_.upper_bound(at);
    if (after == ranges_.begin()) return nullptr;
    const auto& [begin, range] = *--after;
    if (at + bytes > begin + range.bytes) return nullptr;
    if (owner) *owner = range.owner;
    return range.device + (at - begin);
  }

 private:
  struct Range {
    size_t bytes;
    const char* device;
    std::shared_ptr<const void> owner;
  };
  mutable std::shared_mutex lock_;
  std::map<const char*, Range> ranges_;
};

/// Memory of allocate(), which all devices find where the host does.
inline Ranges allocated;

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) fail("DEVICE_FAILED", "cuda: ", what, ": ", cudaGetErrorString(status));
}

/// Of an allocation of so many bytes on the device in use.
inline void check_memory(cudaError_t status, size_t bytes) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // it has been told
  size_t left = 0, all = 0;
  if (status != cudaErrorMemoryAllocation || cudaMemGetInfo(&left, &all) != cudaSuccess) check(status, "memory");
  fail("OUT_OF_MEMORY", "cuda: expected ", bytes >> 20, " MiB of the GPU's memory, found ", left >> 20, " of ", all >> 20,
       " MiB free (a smaller dtype, or a smaller maxBatchTokens?)");
}

/// Two pieces of the host's memory that a device reads by itself: one is filled while the other goes. Weights pass through them on their way
/// from a mapped file, whose pages the device cannot read, at the speed of the bus rather than of one thread that copies.
class Staging {
 public:
#ifdef __CUDACC__
  static constexpr size_t kWorthwhile = size_t(1) << 20, kPart = size_t(32) << 20;  // bytes; what is less goes through the ring
#else
  static constexpr size_t kWorthwhile = size_t(1) << 10, kPart = size_t(1) << 12;  // so that tests come to the end of a part
#endif

  /// `from` may change when this returns.
  void upload(cudaStream_t stream, void* to, const void* from, size_t bytes) {
    std::lock_guard guard(lock_);
    for (size_t at = 0; at < bytes; at += kPart, next_ = 1 - next_) {
      Part& part = parts_[next_];
      if (!part.memory) {
        void* memory = nullptr;
        check(cudaMallocHost(&memory, kPart), "host memory that the device reads");
        part.memory = static_cast<char*>(memory);
        check(cudaEventCreateWithFlags(&part.gone, cudaEventDisableTiming), "event");
      } else {
        check(cudaEventSynchronize(part.gone), "copy");
      }
      const size_t count = std::min(kPart, bytes - at);
      fill(part.memory, static_cast<const char*>(from) + at, count);
      check(cudaMemcpyAsync(static_cast<char*>(to) + at, part.memory, count, cudaMemcpyDefault, stream), "copy");
      check(cudaEventRecord(part.gone, stream), "event");
    }
  }

 private:
  static constexpr size_t kThreads = 4;  // one alone reads about 10 GB/s

  static void fill(char* to, const char* from, size_t bytes) {
    const auto copy = [=](size_t i) {
      const size_t first = bytes * i / kThreads;
      std::memcpy(to + first, from + first, bytes * (i + 1) / kThreads - first);
    };
    std::vector<std::thread> others;
    for (size_t i = 1; i < kThreads; ++i) others.emplace_back(copy, i);
    copy(0);
    for (std::thread& other : others) other.join();
  }

  struct Part {
    char* memory = nullptr;
    cudaEvent_t gone = nullptr;
  };
  Part parts_[2];
  int next_ = 0;
  std::mutex lock_;
};

/// Memory of the host that a device reads by itself, for what is small and comes often: a copy from elsewhere might wait for the stream. One
/// half is filled while what lies in the other goes.
class Ring {
 public:
#ifdef __CUDACC__
  static constexpr size_t kHalf = size_t(8) << 20;
#else
  static constexpr size_t kHalf = size_t(1) << 12;
#endif

  /// At most kHalf bytes, which may change when this returns.
  void upload(cudaStream_t stream, void* to, const void* from, size_t bytes) {
    std::lock_guard guard(lock_);
    if (!memory_) {
      void* memory = nullptr;
      check(cudaMallocHost(&memory, 2 * kHalf), "host memory that the device reads");
      memory_ = static_cast<char*>(memory);
      for (cudaEvent_t& gone : gone_) check(cudaEventCreateWithFlags(&gone, cudaEventDisableTiming), "event");
    }
    if (used_ + bytes > kHalf) {
      check(cudaEventRecord(gone_[half_], stream), "event");
      half_ = 1 - half_, used_ = 0;
      check(cudaEventSynchronize(gone_[half_]), "copy");
    }
    char* place = memory_ + half_ * kHalf + used_;
    used_ += (bytes + 63) / 64 * 64;
    std::memcpy(place, from, bytes);
    check(cudaMemcpyAsync(to, place, bytes, cudaMemcpyDefault, stream), "copy");
  }

 private:
  char* memory_ = nullptr;
  cudaEvent_t gone_[2] = {};
  size_t half_ = 0, used_ = 0;
  std::mutex lock_;
};

/// Pieces of the host's memory that a device writes by itself, for results; a piece serves one after the other.
class Places {
 public:
  struct Place {
    void* memory = nullptr;
    size_t bytes = 0;
    cudaEvent_t there = nullptr;
  };

  Place take(size_t bytes) {
    constexpr size_t least = size_t(1) << 16;
    Place place;
    {
      std::lock_guard guard(lock_);
      if (!free_.empty()) place = free_.back(), free_.pop_back();
    }
    if (!place.there) check(cudaEventCreateWithFlags(&place.there, cudaEventDisableTiming), "event");
    if (place.bytes >= bytes) return place;
    cudaFreeHost(place.memory);
    place.memory = nullptr, place.bytes = std::max(least, std::bit_ceil(bytes));
    check(cudaMallocHost(&place.memory, place.bytes), "host memory that the device writes");
    return place;
  }
  void give_back(const Place& place) {
    std::lock_guard guard(lock_);
    free_.push_back(place);
  }

 private:
  std::vector<Place> free_;
  std::mutex lock_;
};

/// What operations made for themselves lately and the device has a copy of: the layers of a pass make the same, and a copy between two kernels
/// takes ten times as long as it would alone.
class Lately {
 public:
  /// Null: it has none. The copy lives as long as what is returned.
  std::shared_ptr<const void> find(const void* values, size_t bytes) const {
    std::lock_guard guard(lock_);
    for (const Copy& copy : copies_)
      if (copy.there && copy.values.size() == bytes && std::memcmp(copy.values.data(), values, bytes) == 0) return copy.there;
    return nullptr;
  }
  void add(const void* values, size_t bytes, std::shared_ptr<const void> there) {
    std::lock_guard guard(lock_);
    const auto* first = static_cast<const char*>(values);
    copies_[next_] = {{first, first + bytes}, std::move(there)};
    next_ = (next_ + 1) % std::size(copies_);
  }

 private:
  struct Copy {
    std::vector<char> values;
    std::shared_ptr<const void> there;
  };
  Copy copies_[4];
  size_t next_ = 0;
  mutable std::mutex lock_;
};

/// One GPU and the stream that everything on it goes through, in order.
struct Device {
  int index = 0;
  cudaStream_t main = nullptr;
  int multiprocessors = 4;
  bool warpgroups = false;  // products and attention by whole warpgroups (sm_90a)
  Ranges resident;          // copies that reside() made
  Staging staging;
  Ring ring;
  Places places;
  Lately lately;
  /// Weights that a context has filled without waiting since it called finish(), and where kernels say which of them (from 1 on) holds no
  /// number. Models on one device may run at the same time.
  struct Filled {
    std::vector<std::string> names;
    int* broken = nullptr;
  };
  std::map<const Context*, Filled> filled;
  std::mutex filled_lock;

  /// Or the one that this thread records.
  cudaStream_t stream() const { return recording ? recording->own : main; }

  /// `from` may change when this returns.
  void upload(void* to, const void* from, size_t bytes) {
    if (bytes >= Staging::kWorthwhile) staging.upload(main, to, from, bytes);
    else ring.upload(main, to, from, bytes);
  }
  /// In memory that is given back when nobody holds it.
  std::shared_ptr<const void> copy_of(const void* from, size_t bytes) {
    void* copy = nullptr;
    check_memory(cudaMallocAsync(&copy, bytes, main), bytes);
    const std::shared_ptr<const void> out(copy, [this](void* memory) {
      cudaSetDevice(index);
      cudaFreeAsync(memory, main);
    });
    upload(copy, from, bytes);
    return out;
  }
};

inline Device& device_of(const OperationTable& table) { return *static_cast<Device*>(const_cast<void*>(table.data)); }
inline Device& device_of(const Context& context) { return device_of(context.ops); }

template <class... Parameters, class... Args>
void launch(const Device& device, void (*kernel)(Parameters...), dim3 grid, dim3 block, Args... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
#ifdef __CUDACC__
  kernel<<<grid, block, 0, device.stream()>>>(args...);
  check(cudaGetLastError(), "launch");
#else
  emulated::launch(device.stream(), kernel, grid, block, args...);
#endif
}

#ifdef __CUDACC__
/// Once for a kernel and a device: that it may have so much shared memory.
inline void allow_shared(const Device& device, const void* kernel, int shared) {
  static std::mutex lock;
  static std::map<std::pair<const void*, int>, int> allowed;
  std::lock_guard guard(lock);
  int& most = allowed[{kernel, device.index}];
  if (shared <= most) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), "shared memory");
  most = shared;
}
#endif

/// The same with so many bytes of shared memory that the kernel divides itself.
template <class... Parameters, class... Args>
void launch_shared(const Device& device, void (*kernel)(Parameters...), dim3 grid, dim3 block, int shared, Args... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
#ifdef __CUDACC__
  allow_shared(device, reinterpret_cast<const void*>(kernel), shared);
  kernel<<<grid, block, shared, device.stream()>>>(args...);
  check(cudaGetLastError(), "launch");
#else
  (void)shared;
  launch(device, kernel, grid, block, args...);
#endif
}

/// The same by clusters of so many blocks.
template <class... Parameters, class... Args>
void launch_clusters(const Device& device, void (*kernel)(Parameters...), dim3 grid, dim3 block, int shared, int cluster, Args... args) {
#ifdef __CUDACC__
  allow_shared(device, reinterpret_cast<const void*>(kernel), shared);
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {unsigned(cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = size_t(shared), config.stream = device.stream();
  config.attrs = &attribute, config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, Parameters(args)...), "launch");
#else
  (void)cluster;
  launch_shared(device, kernel, grid, block, shared, args...);
#endif
}

/// Blocks of `size` that hold `count`.
inline unsigned blocks(int64_t count, int64_t size) { return unsigned((count + size - 1) / size); }

/// A matrix as kernels take it.
struct View {
  float* data;
  int64_t rows, cols, stride;
  __device__ float* row(int64_t i) const { return data + i * stride; }
};

/// A matrix of bf16 likewise.
struct NarrowView {
  uint16_t* data;
  int64_t rows, cols, stride;
  __device__ uint16_t* row(int64_t i) const { return data + i * stride; }
};

/// Whether so many neighbouring numbers can be read together, of every row.
template <class Rows>
__host__ __device__ bool in_steps(const Rows& m, int numbers) {
  return reinterpret_cast<uintptr_t>(m.data) % (size_t(numbers) * sizeof(*m.data)) == 0 && m.stride % numbers == 0;
}

/// The arguments of one operation, on the device. Results that lie in host memory are there when it is destroyed.
class Arguments {
 public:
  explicit Arguments(const Context& context) : device(device_of(context)), context(context) {
    check(cudaSetDevice(device.index), "device");
    if (recording) mark_ = recording->scratch.mark();
  }
  ~Arguments() {
    if (recording) recording->scratch.release(mark_);  // it has nothing else
    for (const Back& b : back_) {
      if (b.host_pitch == b.width) cudaMemcpyAsync(b.host, b.device, b.width * b.height, cudaMemcpyDefault, device.main);
      else cudaMemcpy2DAsync(b.host, b.host_pitch, b.device, b.width, b.width, b.height, cudaMemcpyDefault, device.main);
    }
    // Copies from pageable memory have left it when they return, and copies to it are complete then: nothing is to be waited for.
    for (void* memory : owned_) cudaFreeAsync(memory, device.main);
  }
  Arguments(const Arguments&) = delete;
  Arguments& operator=(const Arguments&) = delete;

  template <class T>
  T* scratch(int64_t count) {
    const size_t bytes = size_t(count) * sizeof(T);
    if (recording) return static_cast<T*>(take(recording->scratch, bytes + 16));
    void* out = nullptr;
    check_memory(cudaMallocAsync(&out, bytes + 16, device.main), bytes);
    owned_.push_back(out);
    return static_cast<T*>(out);
  }

  template <class T>
  const T* in(const T* values, int64_t count) {
    if (!values || count <= 0) return values;
    if (const void* there = find(values, size_t(count) * sizeof(T))) return static_cast<const T*>(there);
    if (recording) return static_cast<const T*>(recorded(values, size_t(count) * sizeof(T)));
    T* out = scratch<T>(count);
    device.upload(out, values, size_t(count) * sizeof(T));
    return out;
  }

  /// in() of what an operation makes for itself, whatever memory of the host it lies in.
  template <class T>
  const T* made(const std::vector<T>& values) {
    const size_t bytes = values.size() * sizeof(T);
    if (recording) return static_cast<const T*>(recorded(values.data(), bytes));
    std::shared_ptr<const void> there = device.lately.find(values.data(), bytes);
    if (!there) {
      there = device.copy_of(values.data(), bytes);
      device.lately.add(values.data(), bytes, there);
    }
    kept_.push_back(there);  // until what reads it has been asked for
    return static_cast<const T*>(there.get());
  }

  /// Read and written.
  template <class T>
  T* inout(T* values, int64_t count) {
    if (!values || count <= 0 || allocated.find(values, 1)) return values;
    not_recorded();
    T* out = const_cast<T*>(in(static_cast<const T*>(values), count));
    back_.push_back({values, out, size_t(count) * sizeof(T), size_t(count) * sizeof(T), 1});
    return out;
  }

  /// Written only.
  template <class T>
  T* out(T* values, int64_t count) {
    if (allocated.find(values, 1)) return values;
    not_recorded();
    T* there = scratch<T>(count);
    back_.push_back({values, there, size_t(count) * sizeof(T), size_t(count) * sizeof(T), 1});
    return there;
  }

  /// Where the device finds what lies there; null: nowhere.
  const void* find(const void* pointer, size_t bytes) const {
    if (const void* there = allocated.find(pointer, bytes)) return there;
    std::shared_ptr<const void> owner;
    const void* there = device.resident.find(pointer, bytes, recording ? &owner : nullptr);
    if (there && recording && std::find(recording->residents.begin(), recording->residents.end(), owner) == recording->residents.end())
      recording->residents.push_back(std::move(owner));
    return there;
  }

  NarrowView in(const Bf16Matrix& m) { return {const_cast<uint16_t*>(in(static_cast<const uint16_t*>(m.data), span(m))), m.rows, m.cols, m.stride}; }
  NarrowView inout(const Bf16Matrix& m) { return {inout(m.data, span(m)), m.rows, m.cols, m.stride}; }
  View in(const Matrix& m) { return matrix(m, true, false); }
  View out(const Matrix& m) { return matrix(m, false, true); }
  View inout(const Matrix& m) { return matrix(m, true, true); }

  Device& device;
  const Context& context;

 private:
  /// Rows of host memory whose copies on the device lie one behind the other.
  struct Back {
    void* host;
    void* device;
    size_t host_pitch, width, height;
  };

  static int64_t span(const Bf16Matrix& m) { return m.rows == 0 ? 0 : (m.rows - 1) * m.stride + m.cols; }

  View matrix(const Matrix& m, bool read, bool write) {
    if (!m.data || m.rows == 0 || allocated.find(m.data, 1)) return {m.data, m.rows, m.cols, m.stride};
    if (const void* there = write ? nullptr : find(m.data, size_t((m.rows - 1) * m.stride + m.cols) * sizeof(float)))
      return {static_cast<float*>(const_cast<void*>(there)), m.rows, m.cols, m.stride};
    not_recorded();
    float* out = scratch<float>(m.rows * m.cols);
    const size_t width = size_t(m.cols) * sizeof(float), pitch = size_t(m.stride) * sizeof(float);
    if (read && (m.rows == 1 || pitch == width)) device.upload(out, m.data, width * size_t(m.rows));
    else if (read) check(cudaMemcpy2DAsync(out, width, m.data, pitch, width, size_t(m.rows), cudaMemcpyDefault, device.main), "copy");
    if (write) back_.push_back({m.data, out, m.rows == 1 ? width : pitch, width, size_t(m.rows)});
    return {out, m.rows, m.cols, m.cols};
  }

  /// What a recording cannot do: matrices of the host, and results that go there.
  static void not_recorded() {
    if (recording) fail("INTERNAL", "cuda: a recording reads or writes memory of the host that it was not given");
  }
  void* take(Recorded::Slabs& slabs, size_t bytes) const {
    if (void* out = slabs.take(bytes)) return out;
    void* memory = nullptr;
    const size_t slab = slabs.next_bytes(bytes);
    check_memory(cudaMallocAsync(&memory, slab, device.main), slab);
    slabs.add(memory, slab);
    return slabs.take(bytes);
  }
  /// Memory of the host as a recording has it: an input, or what there is now.
  const void* recorded(const void* host, size_t bytes) const {
    void* there = take(recording->lasting, bytes);
    const auto* at = static_cast<const char*>(host);
    for (size_t i = 0; i < recording->given.size(); ++i) {
      const HostRange& range = recording->given[i];
      const auto* begin = static_cast<const char*>(range.begin);
      if (at < begin || at + bytes > begin + range.bytes) continue;
      recording->inputs.push_back({i, size_t(at - begin), bytes, there});
      return there;
    }
    device.upload(there, host, bytes);
    return there;
  }

  std::vector<void*> owned_;
  std::vector<std::shared_ptr<const void>> kept_;
  std::vector<Back> back_;
  Recorded::Slabs::Mark mark_;
};

/// Words of files, as numbers.
__device__ __forceinline__ float file_word(const void* data, Dtype dtype, int64_t i) {
  if (dtype == Dtype::f32) return static_cast<const float*>(data)[i];
  const uint16_t bits = static_cast<const uint16_t*>(data)[i];
  if (dtype == Dtype::bf16) {
    const uint32_t wide = uint32_t(bits) << 16;
    float out;
    memcpy(&out, &wide, 4);
    return out;
  }
#ifdef __CUDACC__
  return __half2float(__ushort_as_half(bits));
#else
  return f16_to_f32(bits);
#endif
}

/// 2^x, nearly.
__device__ __forceinline__ float power_of_two(float x) {
#ifdef __CUDACC__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}
constexpr float log2_e = 1.4426950408889634f;
/// 1 / x, nearly.
__device__ __forceinline__ float reciprocal(float x) {
#ifdef __CUDACC__
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
#else
  return 1 / x;
#endif
}

/// What rope makes of pairs of channels, to the bit the same wherever it is done: squares of two pairs, pairs behind the norm (`weight` null: there
/// is none), and pairs of both halves that are turned.
__device__ __forceinline__ float squares_of(const float2& a, const float2& b) { return fmaf(a.x, a.x, a.y * a.y) + fmaf(b.x, b.x, b.y * b.y); }
__device__ __forceinline__ float2 normed(const float2& value, float factor, const float* weight) {
  if (!weight) return value;
  const float2 w = *reinterpret_cast<const float2*>(weight);
  return {value.x * factor * w.x, value.y * factor * w.y};
}
struct Turned {
  float2 low, high;
  __device__ __forceinline__ Turned(const float2& a, const float2& b, const float2& cos, const float2& sin)
      : low{fmaf(a.x, cos.x, -(b.x * sin.x)), fmaf(a.y, cos.y, -(b.y * sin.y))}, high{fmaf(a.x, sin.x, b.x * cos.x), fmaf(a.y, sin.y, b.y * cos.y)} {}
};

__device__ __forceinline__ float activated(Activation activation, float x) {
  switch (activation) {
    case Activation::none: return x;
    case Activation::gelu_erf: return 0.5f * x * (1 + erff(x * 0.70710678118654752f));
    case Activation::gelu_tanh: return 0.5f * x * (1 + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case Activation::quick_gelu: return x / (1 + expf(-1.702f * x));
    case Activation::relu: return x > 0 ? x : 0;
    case Activation::silu: return x / (1 + expf(-x));
    case Activation::tanh: return tanhf(x);
  }
  return x;
}

__device__ __forceinline__ float activated_derivative(Activation activation, float x) {
  const float root = 0.79788456080286536f;  // sqrt(2 / pi)
  switch (activation) {
    case Activation::none: return 1;
    case Activation::gelu_erf: return 0.5f * (1 + erff(x * 0.70710678118654752f)) + x * expf(-x * x / 2) * 0.39894228040143268f;
    case Activation::gelu_tanh: {
      const float s = 1 / (1 + expf(-2 * root * (x + 0.044715f * x * x * x)));
      return s + x * s * (1 - s) * 2 * root * (1 + 3 * 0.044715f * x * x);
    }
    case Activation::quick_gelu: {
      const float s = 1 / (1 + expf(-1.702f * x));
      return s + 1.702f * x * s * (1 - s);
    }
    case Activation::relu: return x > 0;
    case Activation::silu: {
      const float s = 1 / (1 + expf(-x));
      return s * (1 + x * (1 - s));
    }
    case Activation::tanh: return 1 - tanhf(x) * tanhf(x);
  }
  return 1;
}

/// What is given as bf16, or x rounded here: `stride` words a row, zeros behind the last column.
NarrowView narrowed(Arguments& args, const Bf16Matrix& narrow, const Matrix& x, int64_t stride);
/// Into how many parts sums over so many rows are divided.
inline int parts_of(int64_t rows) { return int(std::clamp<int64_t>(rows / 64, 1, 256)); }
/// to += the parts, in their order; `apart` numbers lie between their beginnings, and their rows one behind the other.
void add_parts(Arguments& args, const float* from, int64_t apart, int parts, const View& to);

/// What rope looks at beside its rows, on the device.
struct RopeTables {
  const float *norm_weight, *cos, *sin;
  const int32_t* positions;

  /// Whether neighbours can be read together.
  bool in_pairs() const {
    return std::ranges::all_of(std::array{norm_weight, cos, sin},
                               [](const float* each) { return reinterpret_cast<uintptr_t>(each) % sizeof(float2) == 0; });
  }
};
RopeTables rope_tables(Arguments& args, const RopeArgs& rope);

/// Waits for the stream. Error WEIGHT_NOT_FINITE where a weight that this context has filled is not.
void finish(Context& context);

std::unique_ptr<Weight> pack(Context&, const WeightSource&, WeightFormat);
void repack(Context&, const WeightSource&, Weight&);
void pack_transposed(Context&, const Weight&, std::unique_ptr<Weight>&);
void linear(Context&, const LinearArgs&);
void linear_rope(Context&, const LinearArgs&, const RopeArgs& queries, const RopeArgs& keys);
void linear_backward(Context&, const LinearBackwardArgs&);
void low_rank_backward(Context&, const LowRankBackwardArgs&);
void attention(Context&, const AttentionArgs&);
void attention_backward(Context&, const AttentionBackwardArgs&);
void embed(Context&, const EmbedArgs&);
void embed_backward(Context&, const EmbedBackwardArgs&);
void norm(Context&, const NormArgs&);
void norm_backward(Context&, const NormBackwardArgs&);
void rope(Context&, const RopeArgs&);
void gather(Context&, const GatherArgs&);
void scatter(Context&, const ScatterArgs&);
void clear(Context&, const Matrix&);
void pool(Context&, const PoolArgs&);
void pool_backward(Context&, const PoolBackwardArgs&);
void normalize(Context&, const NormalizeArgs&);
void normalize_backward(Context&, const NormalizeBackwardArgs&);
void unpack(Context&, const UnpackArgs&);
void narrow(Context&, const NarrowArgs&);
void widen(Context&, const WidenArgs&);
void activate(Context&, const ActivateArgs&);
void activate_backward(Context&, const ActivateBackwardArgs&);
void contrast(Context&, const ContrastArgs&);
void adamw(Context&, const AdamWArgs&);
void squares(Context&, const SquaresArgs&);
void merge(Context&, const MergeArgs&);

}  // namespace conan::cuda
