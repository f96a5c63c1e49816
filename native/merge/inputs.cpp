#include "merge/inputs.h"

#include "base/error.h"

namespace conan::merge {

std::vector<int64_t> shape_of(const Json& json) {
  std::vector<int64_t> shape;
  for (const Json& d : json.items()) shape.push_back(d.integer());
  return shape;
}

Inputs::Inputs(const Json& checkpoints) {
  for (const Json& checkpoint : checkpoints.items()) {
    parts_.push_back({std::make_unique<Checkpoint>(checkpoint["directory"].string()), {}});
    for (const Json& adapter : checkpoint["adapters"].items()) parts_.back().adapters.push_back(std::make_unique<Adapter>(adapter.string()));
  }
}

const TensorView& Inputs::view_of(const Json& ref) const {
  const Checkpoint& checkpoint = *parts_.at(size_t(ref["checkpoint"].integer())).checkpoint;
  const TensorView* view = checkpoint.find(ref["tensor"].string());
  if (!view) fail("TENSOR_MISSING", checkpoint.directory(), ": tensor ", json_quote(ref["tensor"].string()), ": expected, found none");
  return *view;
}

const Source* Inputs::source_of(const Json& ref, Held& held) {
  if (ref.is_null()) return nullptr;
  if (ref.has("runs")) {
    std::vector<Source::Run> runs;
    for (const Json& run : ref["runs"].items()) {
      Source::Run rows{run.items().at(0).integer(), {}};
      for (const Json& from : run.items().at(1).items()) rows.from.push_back({source_of(from.items().at(0), held), from.items().at(1).integer()});
      runs.push_back(std::move(rows));
    }
    held.push_back(std::make_unique<Source>("rows by token", shape_of(ref["shape"]), std::move(runs)));
    return held.back().get();
  }
  const TensorView& view = view_of(ref);
  const Parts& parts = parts_[size_t(ref["checkpoint"].integer())];
  const std::string& name = ref["tensor"].string();
  std::vector<std::unique_ptr<AdapterChange>> changes;
  for (const auto& adapter : parts.adapters)
    if (auto change = adapter->take(name, view.shape)) changes.push_back(std::move(change));
  held.push_back(std::make_unique<Source>(parts.checkpoint->directory() + ": tensor " + json_quote(name), view, std::move(changes)));
  return held.back().get();
}

template <class Body>
void Inputs::for_views(const Json& ref, const Body& body) const {
  if (ref.is_null()) return;
  if (!ref.has("runs")) {
    body(*parts_.at(size_t(ref["checkpoint"].integer())).checkpoint, view_of(ref));
    return;
  }
  for (const Json& run : ref["runs"].items())
    for (const Json& from : run.items().at(1).items()) for_views(from.items().at(0), body);
}

void Inputs::prefetch(const Json& ref) const {
  for_views(ref, [](const Checkpoint& checkpoint, const TensorView& view) { checkpoint.prefetch(view); });
}

void Inputs::release(const Json& ref) const {
  for_views(ref, [](const Checkpoint& checkpoint, const TensorView& view) { checkpoint.release(view); });
}

void Inputs::require_adapters_used() const {
  for (const Parts& parts : parts_)
    for (const auto& adapter : parts.adapters) adapter->require_all_used();
}

}  // namespace conan::merge
