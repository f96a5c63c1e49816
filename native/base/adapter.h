// A PEFT directory (adapter_config.json + adapter_model.safetensors): low-rank changes to the weights of a model,
// W' = W + scale * B A (LoRA, Hu et al. 2021), and modules that were trained whole.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/safetensors.h"

namespace conan {

/// `path` is `name`, or ends with it after a dot.
bool names_module(const std::string& path, const std::string& name);

/// What an adapter does to one tensor. Rows and columns are the tensor's own.
class AdapterChange {
 public:
  /// Changes elements [first, first + count) of the flattened tensor, which lie in `values`.
  void apply(int64_t first, int64_t count, float* values) const;

 private:
  friend class Adapter;
  const TensorView* replacement_ = nullptr;
  int64_t cols_ = 0, rank_ = 0;
  float scale_ = 1;
  std::vector<float> left_, right_;  // [rows, rank], [rank, cols]
};

class Adapter {
 public:
  explicit Adapter(const std::string& directory);

  const std::string& directory() const { return directory_; }
  /// The change to `name` (without what the saved model puts before it), a tensor of this shape; null: there is none.
  std::unique_ptr<AdapterChange> take(const std::string& name, const std::vector<int64_t>& shape);
  bool has(const std::string& name) const;
  /// Fails where a part belongs to none of these tensors, or to several.
  void require_fits(const std::vector<std::string>& names) const;
  /// Fails where no tensor of the model took up a part: an adapter of another model.
  void require_all_used() const;

 private:
  struct Module {
    const TensorView *a = nullptr, *b = nullptr, *replacement = nullptr;
    bool embedding = false;
    float scale = 1;
    bool used = false;
    std::string key;
  };
  Module* find(const std::string& name);
  [[noreturn]] void fail_unused(const Module& module) const;

  std::string directory_;
  Checkpoint checkpoint_;
  std::map<std::string, Module> modules_;  // by path as saved, without "base_model.model."
};

}  // namespace conan
