// Files by position, and maps of whole ones: what POSIX (file_posix.cpp) and Windows (file_windows.cpp) do in ways of their own. Paths are UTF-8;
// errors are FILE_IO and name the path.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace conan {

/// A file that is written, and read back, from any thread; made where it does not exist.
class File {
 public:
  explicit File(const std::string& path);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  uint64_t size() const;
  void resize(uint64_t size);
  void read(uint64_t at, void* data, size_t bytes) const;
  void write(uint64_t at, const void* data, size_t bytes);
  /// In one piece, behind everything else.
  void append(const std::string& text);
  /// False: somebody else holds the lock, which ends with the file.
  bool lock();
  /// An Error where the system could not take everything.
  void close();

 private:
  std::string path_;
  std::intptr_t handle_;
};

/// A whole file mapped read-only.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const char* data() const { return data_; }
  size_t size() const { return size_; }
  /// Tells the system that these pages will not be read again soon (they leave the resident set).
  void release(const void* from, size_t bytes) const;
  /// Starts reading these pages from disk in the background.
  void prefetch(const void* from, size_t bytes) const;

 private:
  bool holds(const void* from, size_t bytes) const {
    const char* begin = static_cast<const char*>(from);
    return begin >= data_ && begin + bytes <= data_ + size_;  // not a copy
  }
  const char* data_ = nullptr;
  size_t size_ = 0;
};

bool file_exists(const std::string& path);

/// Bytes that may still be written in a directory, where that is known.
std::optional<uint64_t> free_space(const std::string& directory);

}  // namespace conan
