#include "base/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <set>
#include <string>
#include <utility>

#include "base/error.h"

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#elif defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#endif
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace conan {

namespace {

thread_local bool inside_region = false;

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// How long a worker looks for the next region before it sleeps. The regions of a forward pass follow each other
// within microseconds; between requests threads must cost nothing.
constexpr auto kSpin = std::chrono::microseconds(60);

/// Spins until ready() holds or the time is up.
template <class Ready>
bool spin(const Ready& ready) {
  const auto until = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < until);
  return ready();
}

int container_quota() {  // cgroup v2, then v1; 0 where there is none
  double quota = -1, period = 0;
  if (FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
    if (std::fscanf(file, "%lf %lf", &quota, &period) != 2) quota = -1;
    std::fclose(file);
  } else {
    auto number = [](const char* path) {
      double value = -1;
      if (FILE* f = std::fopen(path, "r")) {
        if (std::fscanf(f, "%lf", &value) != 1) value = -1;
        std::fclose(f);
      }
      return value;
    };
    quota = number("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
    period = number("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  }
  return quota > 0 && period > 0 ? std::max(1, int(quota / period + 0.5)) : 0;
}

int physical_cores() {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
    std::set<std::pair<int, int>> cores;
    int logical = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (!CPU_ISSET(cpu, &allowed)) continue;
      ++logical;
      std::pair<int, int> id(-1, cpu);
      const std::string base = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
      auto read = [](const std::string& path, int& value) {
        if (FILE* f = std::fopen(path.c_str(), "r")) {
          if (std::fscanf(f, "%d", &value) != 1) value = -1;
          std::fclose(f);
        }
      };
      read(base + "physical_package_id", id.first);
      read(base + "core_id", id.second);
      cores.insert(id);
    }
    if (logical) return int(cores.size());
  }
#elif defined(_WIN32)
  DWORD bytes = 0;
  GetLogicalProcessorInformationEx(RelationProcessorCore, nullptr, &bytes);
  std::string records(bytes, 0);
  auto* first = reinterpret_cast<SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX*>(records.data());
  int cores = 0;
  if (bytes && GetLogicalProcessorInformationEx(RelationProcessorCore, first, &bytes))
    for (DWORD at = 0; at < bytes; ++cores) at += reinterpret_cast<SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX*>(records.data() + at)->Size;
  if (cores) return cores;
#endif
  return std::max(1, int(std::thread::hardware_concurrency()));
}

}  // namespace

ThreadPool& ThreadPool::instance() {
  static ThreadPool* pool = new ThreadPool;  // leaked on purpose, see the header
  return *pool;
}

bool ThreadPool::inside() { return inside_region; }

int ThreadPool::default_threads() {
  if (const char* setting = std::getenv("CONAN_THREADS"); setting && *setting) {
    char* end;
    long threads = std::strtol(setting, &end, 10);
    if (*end || threads < 1 || threads > 1024) fail("INVALID_OPTION", "CONAN_THREADS: expected a number from 1 to 1024, got \"", setting, "\"");
    return int(threads);
  }
  const int cores = physical_cores(), quota = container_quota();
  return quota ? std::min(cores, quota) : cores;
}

void ThreadPool::work(int worker, uint64_t seen) {
  inside_region = true;  // a region started from a worker's body runs on that worker alone
  while (true) {
    auto called = [&] { return generation_.load(std::memory_order_acquire) != seen; };
    if (!spin(called)) {
      std::unique_lock<std::mutex> lock(sleep_);
      sleepers_.fetch_add(1);
      wake_.wait(lock, called);
      sleepers_.fetch_sub(1);
    }
    seen = generation_.load(std::memory_order_acquire);
    if (worker < active_) {
      try {
        call_(body_, worker);
      } catch (...) {
        std::lock_guard<std::mutex> lock(failure_);
        if (!error_) error_ = std::current_exception();
      }
    }
    // Every thread answers every generation, so that none can still read the old region when the next one starts.
    remaining_.fetch_sub(1, std::memory_order_acq_rel);
  }
}

void ThreadPool::run_erased(int threads, Call call, const void* body) {
  if (inside_region || threads <= 1) {
    const bool before = std::exchange(inside_region, true);
    struct Restore {
      bool before;
      ~Restore() { inside_region = before; }
    } restore{before};
    call(body, 0);
    return;
  }
  std::lock_guard<std::mutex> region(region_);
  for (; started_ < threads; ++started_) {
    std::thread thread(&ThreadPool::work, this, started_, generation_.load());
#if defined(__linux__)
    pthread_setname_np(thread.native_handle(), "conan");
#endif
    thread.detach();
  }
  active_ = threads;
  call_ = call;
  body_ = body;
  remaining_.store(started_ - 1, std::memory_order_relaxed);
  {
    std::lock_guard<std::mutex> lock(sleep_);  // so that no worker misses the change between its look and its sleep
    generation_.fetch_add(1, std::memory_order_acq_rel);
  }
  if (sleepers_.load()) wake_.notify_all();

  std::exception_ptr mine;
  inside_region = true;
  try {
    call(body, 0);
  } catch (...) {
    mine = std::current_exception();
  }
  inside_region = false;
  auto done = [&] { return remaining_.load(std::memory_order_acquire) == 0; };
  while (!spin(done)) std::this_thread::yield();
  std::exception_ptr theirs = std::exchange(error_, nullptr);
  if (mine) std::rethrow_exception(mine);
  if (theirs) std::rethrow_exception(theirs);
}

}  // namespace conan
