// The checkpoints a plan names, and sources for the tensors it refers to (see fuse.h for `ref`).
#pragma once
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/adapter.h"
#include "base/json.h"
#include "merge/source.h"

namespace conan::merge {

/// Keeps alive what source_of() made, and makes it once.
struct Held {
  std::vector<std::unique_ptr<Source>> sources;
  std::map<std::pair<int64_t, std::string>, const Source*> stored;  // by checkpoint and tensor
};

class Inputs {
 public:
  /// [{directory, adapters: [directory]}]
  explicit Inputs(const Json& checkpoints);

  /// Null for a null reference.
  const Source* source_of(const Json& ref, Held& held);
  /// For the tensors that references refer to: the disk starts to read them; they leave the resident set.
  void prefetch(const std::vector<const Json*>& refs) const;
  void release(const std::vector<const Json*>& refs) const;

 private:
  struct Parts {
    std::unique_ptr<Checkpoint> checkpoint;
    std::vector<std::unique_ptr<Adapter>> adapters;
  };
  using Name = std::pair<int64_t, std::string>;  // checkpoint, tensor
  static void collect(const Json& ref, std::set<Name>& names);
  const TensorView& view_of(const Name& name) const;

  std::vector<Parts> parts_;
};

std::vector<int64_t> shape_of(const Json& json);

}  // namespace conan::merge
