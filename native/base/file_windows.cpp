#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/file.h"

namespace conan {

namespace {

std::wstring wide(const std::string& text) {
  std::wstring out(size_t(MultiByteToWideChar(CP_UTF8, 0, text.data(), int(text.size()), nullptr, 0)), L'\0');
  MultiByteToWideChar(CP_UTF8, 0, text.data(), int(text.size()), out.data(), int(out.size()));
  return out;
}

/// In the form that may be longer than 260 characters, where it is absolute.
std::wstring native_path(const std::string& path) {
  std::wstring out = wide(path);
  std::replace(out.begin(), out.end(), L'/', L'\\');
  if (out.size() > 2 && out[1] == L':' && out[2] == L'\\') return L"\\\\?\\" + out;
  if (out.rfind(L"\\\\", 0) == 0 && out.rfind(L"\\\\?\\", 0) != 0 && out.rfind(L"\\\\.\\", 0) != 0) return L"\\\\?\\UNC" + out.substr(1);
  return out;
}

/// What went wrong last, as the system words it.
std::string reason() {
  const DWORD code = GetLastError();
  char text[512];
  const DWORD flags = FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS | FORMAT_MESSAGE_MAX_WIDTH_MASK;
  size_t length = FormatMessageA(flags, nullptr, code, MAKELANGID(LANG_ENGLISH, SUBLANG_ENGLISH_US), text, sizeof text, nullptr);
  while (length && (text[length - 1] == ' ' || text[length - 1] == '.')) --length;
  return length ? std::string(text, length) : "error " + std::to_string(code);
}

HANDLE of(std::intptr_t handle) { return reinterpret_cast<HANDLE>(handle); }

OVERLAPPED position(uint64_t at) {
  OVERLAPPED out{};
  out.Offset = DWORD(at);
  out.OffsetHigh = DWORD(at >> 32);
  return out;
}

constexpr std::intptr_t kNone = -1;  // INVALID_HANDLE_VALUE
constexpr size_t kPiece = size_t(1) << 30;
/// Programs may do with a file what POSIX lets them do.
constexpr DWORD kShared = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;

struct Handle {
  HANDLE handle;
  ~Handle() {
    if (handle && handle != INVALID_HANDLE_VALUE) CloseHandle(handle);
  }
};

}  // namespace

File::File(const std::string& path)
    : path_(path),
      handle_(reinterpret_cast<std::intptr_t>(
          CreateFileW(native_path(path).c_str(), GENERIC_READ | GENERIC_WRITE, kShared, nullptr, OPEN_ALWAYS, FILE_ATTRIBUTE_NORMAL, nullptr))) {
  if (handle_ == kNone) fail("FILE_IO", path, ": cannot be created: ", reason());
}

File::~File() {
  if (handle_ != kNone) CloseHandle(of(handle_));
}

uint64_t File::size() const {
  LARGE_INTEGER size;
  if (!GetFileSizeEx(of(handle_), &size)) fail("FILE_IO", path_, ": its size cannot be read: ", reason());
  return uint64_t(size.QuadPart);
}

void File::resize(uint64_t size) {
  FILE_END_OF_FILE_INFO end;
  end.EndOfFile.QuadPart = LONGLONG(size);
  if (!SetFileInformationByHandle(of(handle_), FileEndOfFileInfo, &end, sizeof end))
    fail("FILE_IO", path_, ": cannot be made ", size, " bytes long: ", reason());
}

void File::read(uint64_t at, void* data, size_t bytes) const {
  for (size_t done = 0; done < bytes;) {
    OVERLAPPED where = position(at + done);
    DWORD n = 0;
    if (!ReadFile(of(handle_), static_cast<char*>(data) + done, DWORD(std::min(bytes - done, kPiece)), &n, &where) &&
        GetLastError() != ERROR_HANDLE_EOF)
      fail("FILE_IO", path_, ": cannot be read back: ", reason());
    if (n == 0) fail("FILE_IO", path_, ": cannot be read back: it ends too early");
    done += n;
  }
}

void File::write(uint64_t at, const void* data, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    OVERLAPPED where = position(at + done);
    DWORD n = 0;
    if (!WriteFile(of(handle_), static_cast<const char*>(data) + done, DWORD(std::min(bytes - done, kPiece)), &n, &where) || n == 0)
      fail("FILE_IO", path_, ": cannot be written: ", reason());
    done += n;
  }
}

void File::append(const std::string& text) { write(size(), text.data(), text.size()); }

bool File::lock() {
  OVERLAPPED where = position(uint64_t(1) << 62);  // a byte that no file has: locked ones cannot be read
  return LockFileEx(of(handle_), LOCKFILE_EXCLUSIVE_LOCK | LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &where);
}

void File::close() {
  const std::intptr_t handle = std::exchange(handle_, kNone);
  if (handle != kNone && !CloseHandle(of(handle))) fail("FILE_IO", path_, ": cannot be closed: ", reason());
}

MappedFile::MappedFile(const std::string& path) {
  const Handle file{CreateFileW(native_path(path).c_str(), GENERIC_READ, kShared, nullptr, OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr)};
  LARGE_INTEGER size;
  if (file.handle == INVALID_HANDLE_VALUE || !GetFileSizeEx(file.handle, &size)) fail("FILE_IO", path, ": cannot be opened: ", reason());
  if (GetFileType(file.handle) != FILE_TYPE_DISK) fail("FILE_IO", path, ": expected a regular file");
  size_ = size_t(size.QuadPart);
  if (size_ == 0) return;
  const Handle mapping{CreateFileMappingW(file.handle, nullptr, PAGE_READONLY, 0, 0, nullptr)};
  void* mapped = mapping.handle ? MapViewOfFile(mapping.handle, FILE_MAP_READ, 0, 0, 0) : nullptr;  // outlives both handles
  if (!mapped) fail("FILE_IO", path, ": cannot be mapped: ", reason());
  data_ = static_cast<const char*>(mapped);
}

MappedFile::~MappedFile() {
  if (data_) UnmapViewOfFile(data_);
}

void MappedFile::release(const void* from, size_t bytes) const {
  if (holds(from, bytes)) VirtualUnlock(const_cast<void*>(from), bytes);  // of pages that are not locked: they leave the working set
}

void MappedFile::prefetch(const void* from, size_t bytes) const {
  if (!holds(from, bytes) || bytes == 0) return;
  WIN32_MEMORY_RANGE_ENTRY range{const_cast<void*>(from), bytes};
  PrefetchVirtualMemory(GetCurrentProcess(), 1, &range, 0);
}

bool file_exists(const std::string& path) { return GetFileAttributesW(native_path(path).c_str()) != INVALID_FILE_ATTRIBUTES; }

std::optional<uint64_t> free_space(const std::string& directory) {
  ULARGE_INTEGER bytes;
  if (!GetDiskFreeSpaceExW(native_path(directory).c_str(), &bytes, nullptr, nullptr)) return std::nullopt;
  return bytes.QuadPart;
}

}  // namespace conan
#endif
