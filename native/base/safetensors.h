// Reads safetensors files through a map and writes them piece by piece (format: github.com/huggingface/safetensors).
// Everything in a header is checked before a tensor is handed out, so a hostile or truncated file ends in an Error and
// never in a wild read.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/file.h"
#include "base/json.h"
#include "base/tensor.h"

namespace conan {

/// The whole file as a string; at most `limit` bytes.
std::string read_text_file(const std::string& path, size_t limit = size_t(256) << 20);

class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::string& path);

  const std::string& path() const { return path_; }
  /// Sorted by name. Data pointers stay valid as long as this object; they are aligned to the element size.
  const std::map<std::string, TensorView>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  void release(const TensorView& tensor) const { file_.release(tensor.data, tensor.bytes()); }
  void prefetch(const TensorView& tensor) const { file_.prefetch(tensor.data, tensor.bytes()); }

 private:
  std::string path_;
  MappedFile file_;
  std::map<std::string, TensorView> tensors_;
  std::map<std::string, std::string> metadata_;
  std::vector<std::unique_ptr<char[]>> copies_;  // tensors that lie misaligned in the file
};

/// All tensors of a Hugging Face directory: model.safetensors, or the shards that model.safetensors.index.json names.
class Checkpoint {
 public:
  /// `stem`: "model" or "adapter_model".
  explicit Checkpoint(const std::string& directory, const std::string& stem = "model");

  const std::string& directory() const { return directory_; }
  const TensorView* find(const std::string& name) const;
  std::vector<std::string> names() const;  // sorted
  void release(const TensorView& tensor) const;
  void prefetch(const TensorView& tensor) const;
  /// The files behind it, in the order they were opened.
  const std::vector<std::unique_ptr<SafetensorsFile>>& files() const { return files_; }

 private:
  struct Entry {
    TensorView view;
    const SafetensorsFile* file;
  };
  void add(const SafetensorsFile& file, const std::string& name, const TensorView& view);

  std::string directory_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Entry> entries_;
};

struct TensorHeader {
  std::string name;
  Dtype dtype;
  std::vector<int64_t> shape;
};

/// A safetensors file of known layout, filled in any order and from any thread. Writes go through the page cache and
/// fail with an Error (a full disk), never with a signal.
class SafetensorsWriter {
 public:
  /// With `resume`, a file that already has this very header and size is kept as it is; resumed() tells.
  SafetensorsWriter(const std::string& path, const std::vector<TensorHeader>& tensors, const std::map<std::string, std::string>& metadata,
                    bool resume = false);

  bool resumed() const { return resumed_; }
  /// Bytes [at, at + bytes) of tensor number `tensor`.
  void write(size_t tensor, size_t at, const void* data, size_t bytes) { file_.write(begins_[tensor] + at, data, bytes); }
  void read(size_t tensor, size_t at, void* data, size_t bytes) const { file_.read(begins_[tensor] + at, data, bytes); }
  /// Closes the file; an Error where the system could not take everything.
  void close() { file_.close(); }

 private:
  File file_;
  bool resumed_ = false;
  std::vector<size_t> begins_;  // of the tensors, in the file
};

}  // namespace conan
