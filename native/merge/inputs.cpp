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
    for (const Json& adapter : checkpoint["adapters"].items()) {
      parts_.back().adapters.push_back(std::make_unique<Adapter>(adapter.string()));
      parts_.back().adapters.back()->require_fits(parts_.back().checkpoint->names());
    }
  }
}

const TensorView& Inputs::view_of(const Name& name) const {
  const Checkpoint& checkpoint = *parts_.at(size_t(name.first)).checkpoint;
  const TensorView* view = checkpoint.find(name.second);
  if (!view) fail("TENSOR_MISSING", checkpoint.directory(), ": tensor ", json_quote(name.second), ": expected, found none");
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
    held.sources.push_back(std::make_unique<Source>("rows by token", shape_of(ref["shape"]), std::move(runs)));
    return held.sources.back().get();
  }
  const Name name(ref["checkpoint"].integer(), ref["tensor"].string());
  const Source*& known = held.stored[name];
  if (known) return known;
  const TensorView& view = view_of(name);
  const Parts& parts = parts_[size_t(name.first)];
  std::vector<std::unique_ptr<AdapterChange>> changes;
  for (const auto& adapter : parts.adapters)
    if (auto change = adapter->take(name.second, view.shape)) changes.push_back(std::move(change));
  held.sources.push_back(std::make_unique<Source>(parts.checkpoint->directory() + ": tensor " + json_quote(name.second), view, std::move(changes)));
  return known = held.sources.back().get();
}

void Inputs::collect(const Json& ref, std::set<Name>& names) {
  if (ref.is_null()) return;
  if (!ref.has("runs")) names.emplace(ref["checkpoint"].integer(), ref["tensor"].string());
  for (const Json& run : ref["runs"].items())
    for (const Json& from : run.items().at(1).items()) collect(from.items().at(0), names);
}

void Inputs::prefetch(const std::vector<const Json*>& refs) const {
  std::set<Name> names;
  for (const Json* ref : refs) collect(*ref, names);
  for (const Name& name : names) parts_[size_t(name.first)].checkpoint->prefetch(view_of(name));
}

void Inputs::release(const std::vector<const Json*>& refs) const {
  std::set<Name> names;
  for (const Json* ref : refs) collect(*ref, names);
  for (const Name& name : names) parts_[size_t(name.first)].checkpoint->release(view_of(name));
}

}  // namespace conan::merge
