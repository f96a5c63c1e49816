// The table of a GPU, and the library's three functions. Compiled without nvcc it is the emulated one (emulate.h).
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>

#include "cuda/cuda.h"
#include "ops/cuda_library.h"

namespace conan::cuda {

namespace {

/// Memory that host loops may look at as well, once finish() has been called. The driver would give more of it than the GPU has, and move
/// it to and fro.
void* allocate(const OperationTable& table, size_t bytes) {
  const int device = device_of(table).index;
  check(cudaSetDevice(device), "device");
  void* memory = nullptr;
  size_t left = 0, all = 0;
  check(cudaMemGetInfo(&left, &all), "memory");
#ifdef __CUDACC__
  if (bytes > left) {  // operations' own memory may be in the way, of which most is free again
    cudaMemPool_t pool;
    check(cudaDeviceSynchronize(), "computing");
    check(cudaDeviceGetDefaultMemPool(&pool, device), "memory pool");
    check(cudaMemPoolTrimTo(pool, 0), "memory pool");
    check(cudaMemGetInfo(&left, &all), "memory");
  }
#endif
  check_memory(bytes > left ? cudaErrorMemoryAllocation : cudaMallocManaged(&memory, bytes, cudaMemAttachGlobal), bytes);
#ifdef __CUDACC__
  // Its pages come into being on the GPU, all at once: otherwise kernels would ask for them one fault at a time. No more than a hint.
  if (cudaMemPrefetchAsync(memory, bytes, {cudaMemLocationTypeDevice, device}, 0, nullptr) != cudaSuccess) cudaGetLastError();
#endif
  allocated.add(memory, bytes, memory);
  return memory;
}

size_t free_bytes(Context& context) {
  size_t left = 0, all = 0;
  check(cudaSetDevice(device_of(context).index), "device");
  check(cudaMemGetInfo(&left, &all), "memory");
  return left;
}

void release(const OperationTable& table, void* memory, size_t) {
  cudaSetDevice(device_of(table).index);
  allocated.remove(memory);
  cudaFree(memory);
}

Resident reside(Context& context, const void* host, size_t bytes) {
  Device& device = device_of(context);
  check(cudaSetDevice(device.index), "device");
  const std::shared_ptr<const void> copy = device.copy_of(host, bytes);
  device.resident.add(host, bytes, copy.get(), copy);
  return {copy.get(), [&device, host](const void*) { device.resident.remove(host); }};
}

struct Brought : Arrival {
  Device& device;
  Places::Place place;
  Brought(Device& device, size_t bytes) : device(device), place(device.places.take(bytes)) {}
  ~Brought() override {
    cudaEventSynchronize(place.there);  // else the next one's would be written over
    device.places.give_back(place);
  }
  const float* wait() override {
    check(cudaEventSynchronize(place.there), "computing");
    return static_cast<const float*>(place.memory);
  }
};

std::unique_ptr<Arrival> bring(Context& context, const Matrix& x) {
  Device& device = device_of(context);
  check(cudaSetDevice(device.index), "device");
  const size_t width = size_t(x.cols) * sizeof(float);
  auto out = std::make_unique<Brought>(device, width * size_t(x.rows));
  check(cudaMemcpy2DAsync(out->place.memory, width, x.data, size_t(x.stride) * sizeof(float), width, size_t(x.rows), cudaMemcpyDefault, device.main),
        "copy");
  check(cudaEventRecord(out->place.there, device.main), "event");
  return out;
}

std::unique_ptr<Recording> record(Context& context, const std::vector<HostRange>& inputs, const std::function<void()>& body) {
  Device& device = device_of(context);
  check(cudaSetDevice(device.index), "device");
  auto out = std::make_unique<Recorded>();
  out->index = device.index, out->main = device.main, out->given = inputs;
  check(cudaStreamCreateWithFlags(&out->own, cudaStreamNonBlocking), "stream");
  // Relaxed: what asks for memory meanwhile, here or elsewhere, may.
  check(cudaStreamBeginCapture(out->own, cudaStreamCaptureModeRelaxed), "recording");
  recording = out.get();
  bool whole = true;
  std::exception_ptr aborted;
  try {
    body();
  } catch (const Error& error) {
    whole = false;
    if (error.code() == std::string("ABORTED")) aborted = std::current_exception();
  }
  recording = nullptr;
  cudaGraph_t graph = nullptr;
  whole &= cudaStreamEndCapture(out->own, &graph) == cudaSuccess && graph;
  whole = whole && cudaGraphInstantiate(&out->graph, graph, 0) == cudaSuccess;
  if (graph) cudaGraphDestroy(graph);
  cudaGetLastError();  // whatever it was, the pass can do without
  if (aborted) std::rethrow_exception(aborted);
  return whole ? std::move(out) : nullptr;
}

void replay(Context& context, Recording& recording, const std::vector<const void*>& inputs) {
  Device& device = device_of(context);
  auto& recorded = static_cast<Recorded&>(recording);
  check(cudaSetDevice(device.index), "device");
  for (const Recorded::Input& input : recorded.inputs)
    device.upload(input.there, static_cast<const char*>(inputs[input.which]) + input.first, input.bytes);
  check(cudaGraphLaunch(recorded.graph, device.main), "recorded pass");
}

void for_rows(Context& context, int64_t rows, int64_t, const RowsBody& body) { body(context, 0, rows); }

struct Backend {
  Device device;
  std::string name;
  OperationTable table;
};

void fill(Backend& backend) {
  OperationTable& t = backend.table;
  t.name = backend.name.c_str();
  t.data = &backend.device;
  t.narrow_linear = true;
  t.allocate = allocate;
  t.release = release;
  t.free_bytes = free_bytes;
  t.finish = finish;
  t.for_rows = for_rows;
  t.bring = bring;
  t.reside = reside;
  t.record = record;
  t.replay = replay;
  t.pack = pack;
  t.repack = repack;
  t.pack_transposed = pack_transposed;
  t.embed = embed;
  t.norm = norm;
  t.linear = linear;
  t.linear_rope = linear_rope;
  t.rope = rope;
  t.attention = attention;
  t.gather = gather;
  t.scatter = scatter;
  t.clear = clear;
  t.pool = pool;
  t.normalize = normalize;
  t.unpack = unpack;
  t.narrow = narrow;
  t.widen = widen;
  t.norm_backward = norm_backward;
  t.activate = activate;
  t.activate_backward = activate_backward;
  t.linear_backward = linear_backward;
  t.attention_backward = attention_backward;
  t.embed_backward = embed_backward;
  t.pool_backward = pool_backward;
  t.normalize_backward = normalize_backward;
  t.contrast = contrast;
  t.adamw = adamw;
  t.squares = squares;
  t.merge = merge;
}

#ifdef __CUDACC__
/// Null where the device can be used.
std::string unusable(int device, cudaDeviceProp* properties) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) return text("no driver that works: ", cudaGetErrorString(status));
  if (device < 0 || device >= count) return text("expected a device below ", count, ", got ", device);
  const cudaError_t asked = cudaGetDeviceProperties(properties, device);
  if (asked != cudaSuccess) return cudaGetErrorString(asked);
  if (properties->major < 8)
    return text(properties->name, ": expected compute capability 8.0 or later, got ", properties->major, ".", properties->minor);
  if (!properties->concurrentManagedAccess)
    return text(properties->name, ": expected memory that host and GPU may use at the same time (WSL has none)");
  return "";
}
#endif

}  // namespace

void finish(Context& context) {
  if (recording) fail("INTERNAL", "cuda: a recording that waits");
  Device& device = device_of(context);
  std::vector<std::string> names;
  int name = 0;
  {
    std::lock_guard guard(device.filled_lock);
    if (const auto found = device.filled.find(&context); found != device.filled.end() && !found->second.names.empty()) {
      names.swap(found->second.names);
      check(cudaMemcpyAsync(&name, found->second.broken, sizeof(int), cudaMemcpyDefault, device.main), "copy");
      check(cudaMemsetAsync(found->second.broken, 0, sizeof(int), device.main), "memset");
    }
  }
  check(cudaStreamSynchronize(device.main), "computing");
  if (name > 0) fail("WEIGHT_NOT_FINITE", "tensor \"", names[size_t(name) - 1], "\" holds a NaN or an infinity");
}

}  // namespace conan::cuda

extern "C" {

#define CONAN_EXPORT __attribute__((visibility("default")))

CONAN_EXPORT int conan_cuda_version() { return conan::cuda::abi_version; }

CONAN_EXPORT int conan_cuda_score(int device, char* text, size_t size, size_t* memory) {
#ifdef __CUDACC__
  cudaDeviceProp properties;
  const std::string reason = conan::cuda::unusable(device, &properties);
  std::snprintf(text, size, "%s", reason.empty() ? properties.name : reason.c_str());
  *memory = reason.empty() ? properties.totalGlobalMem : 0;
  return reason.empty() ? properties.major * 10 + properties.minor : 0;
#else
  std::snprintf(text, size, "%s", device == 0 ? "emulated" : "expected a device below 1");
  *memory = 0;
  return device == 0 ? 80 : 0;
#endif
}

CONAN_EXPORT const conan::OperationTable* conan_cuda_init(int device, char* reason, size_t size) {
  using namespace conan::cuda;
  static std::mutex lock;
  // Never destroyed: when a process ends, the driver may be gone before what they hold of it.
  static auto& backends = *new std::map<int, std::unique_ptr<Backend>>;
  std::lock_guard guard(lock);
  std::unique_ptr<Backend>& backend = backends[device];
  if (backend) return &backend->table;
  try {
    auto made = std::make_unique<Backend>();
    made->device.index = device;
    made->name = conan::text("cuda:", device);
    const char* wanted = std::getenv("CONAN_CUDA_GEMM");
#ifdef __CUDACC__
    cudaDeviceProp properties;
    const std::string why = unusable(device, &properties);
    if (!why.empty()) conan::fail("DEVICE_UNAVAILABLE", why);
    made->device.multiprocessors = properties.multiProcessorCount;
    made->device.warpgroups = properties.major == 9 && !(wanted && std::string(wanted) == "mma");
    check(cudaSetDevice(device), "device");
    check(cudaStreamCreateWithFlags(&made->device.main, cudaStreamNonBlocking), "stream");
    // Memory that was given back stays with the process, so that an operation's own memory costs no call of the driver.
    cudaMemPool_t pool;
    uint64_t keep = UINT64_MAX;
    check(cudaDeviceGetDefaultMemPool(&pool, device), "memory pool");
    check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep), "memory pool");
#else
    made->device.warpgroups = wanted && std::string(wanted) == "wgmma";
#endif
    fill(*made);
    made->table.narrow_rows = made->device.warpgroups;
    if (made->table.narrow_rows) made->table.low_rank_backward = low_rank_backward;
    made->table.packs_changes = true;
    if (const char* graphs = std::getenv("CONAN_CUDA_GRAPHS"); graphs && std::string(graphs) == "0") made->table.record = nullptr;
    backend = std::move(made);
    return &backend->table;
  } catch (const std::exception& error) {
    std::snprintf(reason, size, "%s", error.what());
    return nullptr;
  }
}
}
