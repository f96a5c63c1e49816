// The checkpoints a plan names, and sources for the tensors it refers to (see fuse.h for `ref`).
#pragma once
#include <memory>
#include <vector>

#include "base/adapter.h"
#include "base/json.h"
#include "merge/source.h"

namespace conan::merge {

/// Keeps alive what source_of() made.
using Held = std::vector<std::unique_ptr<Source>>;

class Inputs {
 public:
  /// [{directory, adapters: [directory]}]
  explicit Inputs(const Json& checkpoints);

  /// Null for a null reference.
  const Source* source_of(const Json& ref, Held& held);
  void prefetch(const Json& ref) const;
  void release(const Json& ref) const;
  /// Fails where a part of an adapter was never used.
  void require_adapters_used() const;

 private:
  struct Parts {
    std::unique_ptr<Checkpoint> checkpoint;
    std::vector<std::unique_ptr<Adapter>> adapters;
  };
  template <class Body>
  void for_views(const Json& ref, const Body& body) const;
  const TensorView& view_of(const Json& ref) const;

  std::vector<Parts> parts_;
};

std::vector<int64_t> shape_of(const Json& json);

}  // namespace conan::merge
