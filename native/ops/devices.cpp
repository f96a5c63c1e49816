// Finds the CUDA library at run time: beside this code, or where CONAN_CUDA_LIBRARY says. Nothing here needs a driver or a toolkit.
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <regex>

#include "base/error.h"
#include "ops/cuda_library.h"
#include "ops/backend.h"

#if defined(__linux__)
#include <dlfcn.h>
#endif

namespace conan {

namespace {

struct Library {
  std::string reason;  // why it cannot be used; empty: it can
  decltype(&conan_cuda_score) score = nullptr;
  decltype(&conan_cuda_init) init = nullptr;
};

std::string library_file() {
  if (const char* named = std::getenv("CONAN_CUDA_LIBRARY")) return named;
#if defined(__linux__)
  Dl_info self;
  if (dladdr(reinterpret_cast<const void*>(&library_file), &self))
    return (std::filesystem::path(self.dli_fname).parent_path() / "libconan-cuda.so").string();
#endif
  return "libconan-cuda.so";
}

Library open_library(const std::string& file) {
#if defined(__linux__)
  if (!std::filesystem::exists(file)) return {text("expected the CUDA library ", file, ", found none"), nullptr, nullptr};
  void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) return {text("the CUDA library cannot be loaded: ", dlerror()), nullptr, nullptr};
  const auto version = reinterpret_cast<decltype(&conan_cuda_version)>(dlsym(handle, "conan_cuda_version"));
  const auto score = reinterpret_cast<decltype(&conan_cuda_score)>(dlsym(handle, "conan_cuda_score"));
  const auto init = reinterpret_cast<decltype(&conan_cuda_init)>(dlsym(handle, "conan_cuda_init"));
  if (!version || !score || !init) return {text(file, ": expected conan_cuda_version, _score and _init, found not all"), nullptr, nullptr};
  if (version() != cuda::abi_version) return {text(file, ": expected version ", cuda::abi_version, ", got ", version()), nullptr, nullptr};
  return {"", score, init};
#else
  return {text(file, ": CUDA is supported on Linux only"), nullptr, nullptr};
#endif
}

/// Opened once; what could not be used, or has another name by now, is looked for again.
Library library() {
  static std::mutex lock;
  static Library opened;
  static std::string from;
  std::lock_guard guard(lock);
  const std::string file = library_file();
  if (!opened.init || from != file) opened = open_library(from = file);
  return opened;
}

}  // namespace

std::vector<GpuReport> gpu_reports() {
  std::vector<GpuReport> out;
  const Library opened = library();
  if (!opened.reason.empty()) return {{"", opened.reason, 0, 0}};
  for (int device = 0;; ++device) {
    char name[512] = "";
    GpuReport report;
    const int score = opened.score(device, name, sizeof name, &report.memory);
    if (score == 0) {
      if (out.empty()) out.push_back({"", name, 0, 0});
      return out;
    }
    report.device = text("cuda:", device);
    report.name = name;
    report.capability = score;
    out.push_back(report);
  }
}

const OperationTable& backend(const std::string& device) {
  if (device == "cpu") return cpu_backend();
  if (!std::regex_match(device, std::regex("cuda(:\\d{1,4})?"))) fail("INVALID_OPTION", "device: expected cpu, cuda or cuda:N, got \"", device, "\"");
  const Library opened = library();
  if (!opened.reason.empty()) fail("DEVICE_UNAVAILABLE", "device ", device, ": ", opened.reason);
  const int index = device.size() > 5 ? std::stoi(device.substr(5)) : 0;
  char reason[512] = "";
  size_t memory = 0;
  if (opened.score(index, reason, sizeof reason, &memory) == 0) fail("DEVICE_UNAVAILABLE", "device ", device, ": ", reason);
  const OperationTable* table = opened.init(index, reason, sizeof reason);
  if (!table) fail("DEVICE_UNAVAILABLE", "device ", device, ": ", reason);
  return *table;
}

}  // namespace conan
