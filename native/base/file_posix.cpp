#if !defined(_WIN32)
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/file.h"

namespace conan {

File::File(const std::string& path) : path_(path), handle_(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)) {
  if (handle_ < 0) fail("FILE_IO", path, ": cannot be created: ", std::strerror(errno));
}

File::~File() {
  if (handle_ >= 0) ::close(int(handle_));
}

uint64_t File::size() const {
  struct stat info;
  if (fstat(int(handle_), &info) != 0) fail("FILE_IO", path_, ": its size cannot be read: ", std::strerror(errno));
  return uint64_t(info.st_size);
}

void File::resize(uint64_t size) {
  if (ftruncate(int(handle_), off_t(size)) != 0) fail("FILE_IO", path_, ": cannot be made ", size, " bytes long: ", std::strerror(errno));
}

void File::read(uint64_t at, void* data, size_t bytes) const {
  for (size_t done = 0; done < bytes;) {
    const ssize_t n = pread(int(handle_), static_cast<char*>(data) + done, bytes - done, off_t(at + done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) fail("FILE_IO", path_, ": cannot be read back: ", n == 0 ? "it ends too early" : std::strerror(errno));
    done += size_t(n);
  }
}

void File::write(uint64_t at, const void* data, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    const ssize_t n = pwrite(int(handle_), static_cast<const char*>(data) + done, bytes - done, off_t(at + done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) fail("FILE_IO", path_, ": cannot be written: ", std::strerror(errno));
    done += size_t(n);
  }
}

void File::append(const std::string& text) { write(size(), text.data(), text.size()); }

bool File::lock() { return flock(int(handle_), LOCK_EX | LOCK_NB) == 0; }

void File::close() {
  const int file = int(std::exchange(handle_, -1));
  if (file >= 0 && ::close(file) != 0) fail("FILE_IO", path_, ": cannot be closed: ", std::strerror(errno));
}

MappedFile::MappedFile(const std::string& path) {
  struct Descriptor {  // closes itself when an Error leaves the constructor
    int fd;
    ~Descriptor() {
      if (fd >= 0) ::close(fd);
    }
  } file{open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  struct stat info;
  if (file.fd < 0 || fstat(file.fd, &info) != 0) fail("FILE_IO", path, ": cannot be opened: ", std::strerror(errno));
  if (!S_ISREG(info.st_mode)) fail("FILE_IO", path, ": expected a regular file");
  size_ = size_t(info.st_size);
  if (size_ == 0) return;
  void* mapped = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (mapped == MAP_FAILED) fail("FILE_IO", path, ": cannot be mapped: ", std::strerror(errno));
  data_ = static_cast<const char*>(mapped);
}

MappedFile::~MappedFile() {
  if (data_) munmap(const_cast<char*>(data_), size_);
}

namespace {

/// Of the whole pages inside a range.
void advise(const void* from, size_t bytes, int advice) {
  const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE));
  const uintptr_t first = (uintptr_t(from) + page - 1) & ~(page - 1), last = (uintptr_t(from) + bytes) & ~(page - 1);
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, advice);
}

}  // namespace

void MappedFile::release(const void* from, size_t bytes) const {
  if (holds(from, bytes)) advise(from, bytes, MADV_DONTNEED);
}

void MappedFile::prefetch(const void* from, size_t bytes) const {
  if (!holds(from, bytes)) return;
  // Asking for what is in memory already costs time: look at a few pages first.
  constexpr int kLooks = 8;
  const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE));
  bool present = true;
  for (int i = 0; i < kLooks && present && bytes; ++i) {
    const uintptr_t at = (uintptr_t(from) + (bytes - 1) / kLooks * size_t(i)) & ~(page - 1);
#if defined(__APPLE__)
    char state = 1;
#else
    unsigned char state = 1;
#endif
    present = mincore(reinterpret_cast<void*>(at), 1, &state) != 0 || (state & 1);
  }
  if (!present) advise(from, bytes, MADV_WILLNEED);
}

bool file_exists(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0;
}

std::optional<uint64_t> free_space(const std::string& directory) {
  struct statvfs disk;
  if (statvfs(directory.c_str(), &disk) != 0) return std::nullopt;
  return uint64_t(disk.f_bavail) * uint64_t(disk.f_frsize);
}

}  // namespace conan
#endif
