// The floor under merging: reads files through mmap and writes one file of the given size, on all threads, and does
// nothing else. bandwidth THREADS OUT BYTES FILE ...
#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/safetensors.h"
#include "base/thread_pool.h"

using namespace conan;

int main(int count, char** arguments) {
  if (count < 5) return std::fprintf(stderr, "bandwidth THREADS OUT BYTES FILE ...\n"), 2;
  const int threads = std::atoi(arguments[1]);
  const size_t bytes = size_t(std::atoll(arguments[3])), piece = 1 << 19;
  ThreadPool::instance().run(threads, [](int) {});  // started
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::unique_ptr<MappedFile>> files;
  for (int i = 4; i < count; ++i) files.push_back(std::make_unique<MappedFile>(arguments[i]));
  const int out = open(arguments[2], O_WRONLY | O_CREAT | O_TRUNC, 0644);
  WorkQueue queue(int64_t((bytes + piece - 1) / piece));
  std::atomic<uint64_t> total{0};
  ThreadPool::instance().run(threads, [&](int) {
    std::vector<char> buffer(piece);
    uint64_t sum = 0;
    for (int64_t part; queue.next(part);) {
      const size_t at = size_t(part) * piece;
      for (const auto& file : files) {
        uint64_t words[8] = {}, line[8];
        for (size_t i = at; i + 64 <= std::min(at + piece, file->size()); i += 64) {
          std::memcpy(line, file->data() + i, 64);
          for (int j = 0; j < 8; ++j) words[j] ^= line[j];
        }
        for (uint64_t word : words) sum ^= word;
      }
      const size_t n = std::min(piece, bytes - at);
      if (pwrite(out, buffer.data(), n, off_t(at)) != ssize_t(n)) std::abort();
    }
    total ^= sum;
  });
  close(out);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("{\"seconds\":%.4f,\"check\":%llu}\n", seconds, static_cast<unsigned long long>(total.load()));
}
