// One output tensor in the making: its parents, passes over them chunk by chunk on all threads, and where the result
// goes. Every sum over a tensor is taken chunk by chunk and added in the order of the chunks, so results do not depend
// on the number of threads.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/json.h"
#include "merge/kernels.h"
#include "merge/source.h"
#include "ops/ops.h"

namespace conan::merge {

struct Parent {
  const Source* source = nullptr;
  double weight = 1, density = 1, gamma = 0.01, epsilon = 0.15;
};

/// Takes the finished parts of one tensor, from any thread.
class Sink {
 public:
  virtual ~Sink() = default;
  virtual void write(int64_t at, const void* data, int64_t bytes) = 0;
};

/// Rows of the result that are copied from a parent whatever the method made of them.
struct RowPatch {
  int64_t row = 0;
  const Source* source = nullptr;
  int64_t source_row = 0;
};

/// What the manifest says of a tensor.
struct Statistics {
  std::vector<double> norms;  // of the task vectors, one a parent; of the parents themselves where there is no base
  double conflicts = 0;       // entries where task vectors point both ways
};

/// A block of at most kBlock elements in the hands of one thread.
struct Block {
  int64_t chunk = 0, first = 0, n = 0;
  float* base = nullptr;  // null without a base
  std::vector<float*> x;  // the parents
  double* out = nullptr;
};

/// Buffers of one thread.
struct Workspace {
  std::vector<float> floats, chunk_floats;
  std::vector<double> doubles;
  std::vector<char> bytes;
  std::vector<uint32_t> bits;

  float* take(int64_t count) {
    if (int64_t(floats.size()) < count) floats.resize(size_t(count));
    return floats.data();
  }
};

class Job {
 public:
  std::string name;
  std::vector<int64_t> shape;
  Dtype dtype = Dtype::f32;  // of the result
  const Source* base = nullptr;
  std::vector<Parent> parents;
  std::vector<RowPatch> patches;  // by rising row
  const Json* options = nullptr;
  uint64_t seed = 0;
  int threads = 1;
  std::vector<Workspace>* workspaces = nullptr;  // one a thread
  Sink* sink = nullptr;
  const std::function<void()>* check = nullptr;  // throws where the caller wants to stop
  Context* device = nullptr;                     // where the last pass of bf16 runs, if not here
  Statistics statistics;

  /// The stored bf16 of a source, or null.
  static const uint16_t* stored_bf16(const Source* source);
  /// Sizes that follow from the shape; call once it is set. A chunk is a multiple of eight elements, or the end, and
  /// with `whole_rows` a multiple of eight rows.
  void divide(bool whole_rows);
  int64_t size() const { return size_; }
  int64_t cols() const { return cols_; }
  int64_t rows() const { return size_ / std::max<int64_t>(1, cols_); }
  int64_t chunks() const { return chunks_; }
  int64_t chunk() const { return chunk_; }

  /// body(chunk, first, count, workspace) for every chunk, in parallel.
  void for_chunks(const std::function<void(int64_t, int64_t, int64_t, Workspace&)>& body) const;
  /// body(block, workspace, sums[count]) for every block with base and parents loaded; returns the sums. The blocks of
  /// a chunk come in order, to one thread.
  std::vector<double> scan(size_t count, const std::function<void(Block&, Workspace&, double*)>& body) const;
  /// The last pass: body fills block.out; norms, conflicts, patched rows and writing are done here.
  void produce(const std::function<void(Block&, Workspace&)>& body);
  /// The last pass where `stream` (without its pointers) says it all; false where it cannot be used: it takes bf16 as it is
  /// stored, no patched rows. `open(stream, block, workspace)` may set from and to, or leave a block to `body` by
  /// returning false.
  bool produce_stream(const Stream& stream, const std::function<bool(Stream&, const Block&, Workspace&)>& open,
                      const std::function<void(Block&, Workspace&)>& body);
  /// The result is `source`: byte for byte where it is stored in the result's type.
  void copy(const Source& source);

  double number(const char* key, double otherwise) const;
  bool flag(const char* key, bool otherwise) const;

 private:
  void load(Block& block, Workspace& workspace) const;
  void merge_there(const Stream& stream, int64_t first, int64_t count, uint16_t* out, double* sums) const;
  void produce_block(Block& block, Workspace& workspace, double* sums, void* out, const std::function<void(Block&, Workspace&)>& body);
  void finish(const std::vector<double>& partial);
  void patch(int64_t first, int64_t count, double* values) const;
  void require_finite(const std::vector<double>& sums) const;

  int64_t size_ = 0, cols_ = 1, chunk_ = 1, chunks_ = 0;
};

}  // namespace conan::merge
