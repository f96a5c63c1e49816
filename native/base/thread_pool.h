// One pool of threads for the whole process, shared by every model and every Node worker, so that two models never
// fight over cores. Created on first use and never destroyed: it outlives an addon that Node unloads and loads again.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace conan {

class ThreadPool {
 public:
  static ThreadPool& instance();

  /// Cores this process may use: affinity mask, container quota and hyper-threads considered.
  /// CONAN_THREADS overrides it.
  static int default_threads();

  /// Calls body(worker) for workers 0 .. threads-1 at the same time; the caller is worker 0. Returns when all are done.
  /// Regions of different callers take turns; a region inside a region runs on its own thread alone, as worker 0 of 1.
  template <class Body>
  void run(int threads, const Body& body) {
    run_erased(
        threads, [](const void* b, int worker) { (*static_cast<const Body*>(b))(worker); }, &body);
  }

  /// True on a thread that is inside run().
  static bool inside();

 private:
  using Call = void (*)(const void* body, int worker);
  struct Worker;

  ThreadPool() = default;
  void run_erased(int threads, Call call, const void* body);
  void work(int worker, uint64_t seen);

  std::mutex region_;  // one region at a time
  std::mutex sleep_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> remaining_{0};
  std::atomic<int> sleepers_{0};
  int active_ = 0;  // workers of the current region, the caller included
  Call call_ = nullptr;
  const void* body_ = nullptr;
  int started_ = 1;
  std::mutex failure_;
  std::exception_ptr error_;
};

/// Hands out 0 .. count-1 in order to whoever asks next.
class WorkQueue {
 public:
  explicit WorkQueue(int64_t count) : count_(count) {}
  bool next(int64_t& index) { return (index = taken_.fetch_add(1, std::memory_order_relaxed)) < count_; }

 private:
  alignas(64) std::atomic<int64_t> taken_{0};
  int64_t count_;
};

}  // namespace conan
