// Passes that come again with the same shapes: what one asks for is recorded once (a CUDA graph) and from then on asked for at once. A
// recording has memory of its own for what operations need in between, always in the same places, and copies of what they read of the
// host's memory.
#pragma once
#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "base/error.h"
#include "cuda/warp.h"
#include "ops/ops.h"

namespace conan::cuda {

struct Recorded : Recording {
  /// Memory handed out in order, and given back from a mark on.
  class Slabs {
   public:
    struct Mark {
      size_t slab = 0, used = 0;
    };
    Mark mark() const { return at_; }
    void release(const Mark& mark) { at_ = mark; }
    /// Null: a slab of so many bytes is to be added first.
    void* take(size_t bytes) {
      for (; at_.slab < slabs_.size(); ++at_.slab, at_.used = 0) {
        if (at_.used + bytes > slabs_[at_.slab].bytes) continue;
        void* out = slabs_[at_.slab].memory + at_.used;
        at_.used += (bytes + 255) / 256 * 256;
        return out;
      }
      return nullptr;
    }
    size_t next_bytes(size_t bytes) const { return std::max(bytes, slabs_.empty() ? size_t(1) << 18 : 2 * slabs_.back().bytes); }
    void add(void* memory, size_t bytes) { slabs_.push_back({static_cast<char*>(memory), bytes}); }
    template <class Use>
    void each(const Use& use) const {
      for (const Slab& slab : slabs_) use(slab.memory);
    }

   private:
    struct Slab {
      char* memory;
      size_t bytes;
    };
    std::vector<Slab> slabs_;
    Mark at_;
  };

  /// A part of one of the inputs, and where the device looks for it.
  struct Input {
    size_t which, first, bytes;
    void* there;
  };

  int index = 0;                // of the device
  cudaStream_t main = nullptr;  // the device's, which memory is taken and given back in order of
  cudaStream_t own = nullptr;   // what is recorded goes to this one
  cudaGraphExec_t graph = nullptr;
  std::vector<HostRange> given;  // while it records
  std::vector<Input> inputs;
  std::vector<std::shared_ptr<const void>> residents;  // what kernels read stays as long
  Slabs scratch, lasting;

  ~Recorded() override {
    cudaSetDevice(index);
    if (graph) cudaGraphExecDestroy(graph);
    if (own) cudaStreamDestroy(own);
    const auto give_back = [&](void* memory) { cudaFreeAsync(memory, main); };
    scratch.each(give_back), lasting.each(give_back);
  }
};

/// What the operations of this thread are recorded into, if they are.
inline thread_local Recorded* recording = nullptr;

}  // namespace conan::cuda
