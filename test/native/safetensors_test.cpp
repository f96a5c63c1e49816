// The safetensors reader against damaged and hostile files: every one ends in an Error with a code, none in a crash.
// With a number as argument, that many random mutations of a good file as well (for the sanitizers).
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/safetensors.h"
#include "check.h"

using namespace conan;
using namespace conan::test;

namespace {

std::string file_of(const std::string& header, size_t data, uint64_t claimed) {
  std::string out(8, '\0');
  for (int i = 0; i < 8; ++i) out[size_t(i)] = char(claimed >> (8 * i));
  return out + header + std::string(data, '\1');
}
std::string file_of(const std::string& header, size_t data) { return file_of(header, data, header.size()); }

std::string path;

void write(const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

void refused(const std::string& code, const std::string& what, const std::string& bytes) {
  write(bytes);
  check_error(code, what, [] { SafetensorsFile file(path); });
}

/// Opens a file and reads every byte of every tensor.
void open_and_read() {
  SafetensorsFile file(path);
  volatile char sum = 0;
  for (const auto& [name, view] : file.tensors())
    for (size_t i = 0; i < view.bytes(); ++i) sum = char(sum + static_cast<const char*>(view.data)[i]);
}

}  // namespace

int main(int count, char** arguments) {
  const std::string directory = (std::filesystem::temp_directory_path() / ("conan-safetensors-" + std::to_string(std::random_device{}()))).string();
  std::filesystem::create_directory(directory);
  path = directory + "/model.safetensors";
  const std::string good =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}})";

  write(file_of(good, 32));
  {
    SafetensorsFile file(path);
    check(file.tensors().size() == 2 && file.metadata().at("format") == "pt", "a good file");
    check(file.tensors().at("a").shape == std::vector<int64_t>({2, 3}), "its shape");
  }
  write(file_of(good + " ", 32));  // data one byte off alignment
  {
    SafetensorsFile file(path);
    check(reinterpret_cast<uintptr_t>(file.tensors().at("a").data) % 4 == 0, "misaligned data is straightened");
  }
  refused("FILE_CORRUPT", "an empty file", "");
  refused("FILE_CORRUPT", "seven bytes", "1234567");
  refused("FILE_CORRUPT", "a header longer than the file", file_of(good, 32, 4000));
  refused("FILE_CORRUPT", "a header of 2^63 bytes", file_of(good, 32, uint64_t(1) << 63));
  refused("FILE_CORRUPT", "a header beyond the cap", file_of(good, 32, 100'000'001));
  refused("FILE_CORRUPT", "truncated data", file_of(good, 31));
  refused("FILE_CORRUPT", "data after the last tensor", file_of(good, 33));
  refused("FILE_CORRUPT", "no JSON", file_of("{nonsense", 0));
  refused("FILE_CORRUPT", "a list", file_of("[]", 0));
  refused("FILE_CORRUPT", "deep nesting", file_of(std::string(100000, '['), 0));
  auto tensor = [](const std::string& entry) { return R"({"a":)" + entry + "}"; };
  refused("UNSUPPORTED_DTYPE", "an unknown dtype", file_of(tensor(R"({"dtype":"F7","shape":[1],"data_offsets":[0,4]})"), 4));
  refused("FILE_CORRUPT", "a negative size", file_of(tensor(R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})"), 4));
  refused("FILE_CORRUPT", "a fractional size", file_of(tensor(R"({"dtype":"F32","shape":[1.5],"data_offsets":[0,4]})"), 4));
  refused("FILE_CORRUPT", "an overflowing shape",
          file_of(tensor(R"({"dtype":"F32","shape":[4503599627370496,4503599627370496],"data_offsets":[0,4]})"), 4));
  refused("FILE_CORRUPT", "offsets the wrong way round", file_of(tensor(R"({"dtype":"F32","shape":[1],"data_offsets":[4,0]})"), 4));
  refused("FILE_CORRUPT", "offsets beyond the file", file_of(tensor(R"({"dtype":"F32","shape":[100],"data_offsets":[0,400]})"), 4));
  refused("FILE_CORRUPT", "a shape of another size", file_of(tensor(R"({"dtype":"F32","shape":[2],"data_offsets":[0,4]})"), 4));
  refused("FILE_CORRUPT", "no offsets", file_of(tensor(R"({"dtype":"F32","shape":[1]})"), 4));
  refused("FILE_CORRUPT", "overlap",
          file_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})", 6));
  refused("FILE_CORRUPT", "a hole",
          file_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[6,10]}})", 10));
  refused("FILE_CORRUPT", "a name twice",
          file_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})", 8));
  check_error("FILE_IO", "no file", [&] { SafetensorsFile file(directory + "/none"); });
  check_error("FILE_IO", "a directory", [&] { SafetensorsFile file(directory); });

  // Sharded.
  write(file_of(good, 32));
  const std::string index = directory + "/model.safetensors.index.json";
  auto with_index = [&](const std::string& json) { std::ofstream(index) << json; };
  with_index(R"({"weight_map":{"a":"model.safetensors","b":"model.safetensors"}})");
  check(Checkpoint(directory).names().size() == 2, "a good index");
  with_index(R"({"weight_map":{"a":"../model.safetensors"}})");
  check_error("FILE_CORRUPT", "a shard outside the directory", [&] { Checkpoint c(directory); });
  with_index(R"({"weight_map":{"c":"model.safetensors"}})");
  check_error("TENSOR_MISSING", "a tensor that its shard lacks", [&] { Checkpoint c(directory); });
  with_index(R"({"weight_map":{"a":"gone.safetensors"}})");
  check_error("FILE_IO", "a missing shard", [&] { Checkpoint c(directory); });
  with_index(R"({})");
  check_error("FILE_CORRUPT", "an index without a map", [&] { Checkpoint c(directory); });
  std::filesystem::remove(index);
  std::filesystem::remove(path);
  check_error("MODEL_NOT_FOUND", "an empty directory", [&] { Checkpoint c(directory); });

  // Random damage: bytes changed, removed, doubled, digits put in.
  const int mutations = count > 1 ? std::atoi(arguments[1]) : 2000;
  std::mt19937_64 random(7);
  const std::string whole = file_of(good, 32);
  int accepted = 0;
  for (int i = 0; i < mutations; ++i) {
    std::string bytes = whole;
    for (int edits = 1 + int(random() % 4); edits > 0 && !bytes.empty(); --edits) {
      const size_t at = random() % bytes.size();
      switch (random() % 5) {
        case 0: bytes[at] = char(random()); break;
        case 1: bytes.erase(at, 1 + random() % 4); break;
        case 2: bytes.insert(at, 1, "0123456789-{}[],:\"e."[random() % 20]); break;
        case 3: bytes.resize(at); break;
        default: bytes.insert(at, bytes.substr(at, random() % 16)); break;
      }
    }
    write(bytes);
    try {
      open_and_read();
      ++accepted;
    } catch (const Error&) {
    }
  }
  check(true, "survived");
  std::printf("%d mutations, %d of them still valid files\n", mutations, accepted);
  std::filesystem::remove_all(directory);
  return report("safetensors_test");
}
