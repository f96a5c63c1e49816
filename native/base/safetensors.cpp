#include "base/safetensors.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace conan {

namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // as in the reference implementation

struct DtypeSpelling {
  const char* name;
  Dtype dtype;
};
constexpr DtypeSpelling kSpellings[] = {{"F32", Dtype::f32},      {"BF16", Dtype::bf16},       {"F16", Dtype::f16},        {"F64", Dtype::f64},
                                        {"I8", Dtype::i8},        {"U8", Dtype::u8},           {"I16", Dtype::i16},        {"U16", Dtype::u16},
                                        {"I32", Dtype::i32},      {"U32", Dtype::u32},         {"I64", Dtype::i64},        {"U64", Dtype::u64},
                                        {"BOOL", Dtype::boolean}, {"F8_E4M3", Dtype::f8_e4m3}, {"F8_E5M2", Dtype::f8_e5m2}};

bool multiply(uint64_t a, uint64_t b, uint64_t& out) { return __builtin_mul_overflow(a, b, &out); }

}  // namespace

std::string read_text_file(const std::string& path, size_t limit) {
  MappedFile file(path);
  if (file.size() > limit) fail("FILE_CORRUPT", path, ": expected at most ", limit, " bytes, got ", file.size());
  return std::string(file.data() ? file.data() : "", file.size());
}

SafetensorsFile::SafetensorsFile(const std::string& path) : path_(path), file_(path) {
  if (file_.size() < 8) fail("FILE_CORRUPT", path, ": expected a safetensors file of at least 8 bytes, got ", file_.size());
  uint64_t header_bytes = 0;
  for (int i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | static_cast<unsigned char>(file_.data()[i]);
  if (header_bytes > kMaxHeaderBytes)
    fail("FILE_CORRUPT", path, ": expected a header of at most ", kMaxHeaderBytes, " bytes, got ", header_bytes, " (is this a safetensors file?)");
  if (header_bytes > file_.size() - 8)
    fail("FILE_CORRUPT", path, ": the header claims ", header_bytes, " bytes, but only ", file_.size() - 8, " follow (truncated?)");
  const std::string subject = path + " (header)";
  Json header = Json::parse(std::string_view(file_.data() + 8, header_bytes), subject);
  if (!header.is_object()) fail("FILE_CORRUPT", subject, ": expected a JSON object");

  const uint64_t data_bytes = file_.size() - 8 - header_bytes;
  const char* data = file_.data() + 8 + header_bytes;
  struct Span {
    uint64_t begin, end;
    const std::string* name;
  };
  std::vector<Span> spans;
  for (const auto& [name, entry] : header.members()) {
    if (name == "__metadata__") {
      for (const auto& [key, value] : entry.members())
        if (value.is_string()) metadata_[key] = value.string();
      continue;
    }
    const std::string tensor = path + ": tensor " + json_quote(name);
    auto spelling = std::find_if(std::begin(kSpellings), std::end(kSpellings),
                                 [&, &entry = entry](const DtypeSpelling& s) { return entry["dtype"].string() == s.name; });
    if (spelling == std::end(kSpellings))
      fail("UNSUPPORTED_DTYPE", tensor, ": expected a dtype of F32, BF16, F16, ..., got ", json_quote(entry["dtype"].string()));
    const Json &shape = entry["shape"], &offsets = entry["data_offsets"];
    if (!shape.is_array()) fail("FILE_CORRUPT", tensor, ": expected a shape");
    TensorView view;
    view.dtype = spelling->dtype;
    uint64_t bytes = dtype_size(view.dtype);
    for (const Json& dimension : shape.items()) {
      if (!dimension.is_integer() || dimension.integer() < 0) fail("FILE_CORRUPT", tensor, ": expected a shape of sizes >= 0");
      view.shape.push_back(dimension.integer());
      if (multiply(bytes, uint64_t(dimension.integer()), bytes)) fail("FILE_CORRUPT", tensor, ": its shape overflows 64 bits");
    }
    if (!offsets.is_array() || offsets.items().size() != 2 || !offsets.items()[0].is_integer() || !offsets.items()[1].is_integer())
      fail("FILE_CORRUPT", tensor, ": expected data_offsets [begin, end]");
    const int64_t begin = offsets.items()[0].integer(), end = offsets.items()[1].integer();
    if (begin < 0 || end < begin || uint64_t(end) > data_bytes)
      fail("FILE_CORRUPT", tensor, ": expected data_offsets within the ", data_bytes, " bytes of data, got [", begin, ", ", end, "] (truncated?)");
    if (uint64_t(end - begin) != bytes)
      fail("FILE_CORRUPT", tensor, ": ", dtype_name(view.dtype), " ", shape_text(view.shape), " takes ", bytes, " bytes, data_offsets hold ",
           end - begin);
    view.data = data + begin;
    if (reinterpret_cast<uintptr_t>(view.data) % dtype_size(view.dtype) != 0) {  // legal in old files; ours to straighten
      copies_.push_back(std::make_unique<char[]>(bytes));
      std::memcpy(copies_.back().get(), view.data, bytes);
      view.data = copies_.back().get();
    }
    spans.push_back({uint64_t(begin), uint64_t(end), &name});
    tensors_.emplace(name, std::move(view));
  }

  // Together the tensors must cover the data exactly: no overlap, no hole, nothing behind the last one.
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.begin != b.begin ? a.begin < b.begin : a.end < b.end; });
  uint64_t covered = 0;
  for (const Span& span : spans) {
    if (span.begin < covered) fail("FILE_CORRUPT", path, ": tensor ", json_quote(*span.name), " overlaps another one");
    if (span.begin > covered)
      fail("FILE_CORRUPT", path, ": ", span.begin - covered, " bytes before tensor ", json_quote(*span.name), " belong to none");
    covered = span.end;
  }
  if (covered != data_bytes) fail("FILE_CORRUPT", path, ": expected ", covered, " bytes of data, got ", data_bytes);
}

Checkpoint::Checkpoint(const std::string& directory, const std::string& stem) : directory_(directory) {
  const std::string single = directory + "/" + stem + ".safetensors", index_path = single + ".index.json";
  if (!file_exists(index_path)) {
    if (!file_exists(single))
      fail("MODEL_NOT_FOUND", directory, ": expected ", stem, ".safetensors or ", stem, ".safetensors.index.json, found neither");
    files_.push_back(std::make_unique<SafetensorsFile>(single));
    for (const auto& [name, view] : files_.back()->tensors()) add(*files_.back(), name, view);
    return;
  }
  Json index = Json::parse(read_text_file(index_path), index_path);
  if (!index["weight_map"].is_object()) fail("FILE_CORRUPT", index_path, ": expected an object \"weight_map\"");
  std::map<std::string, SafetensorsFile*> shards;
  for (const auto& [name, shard] : index["weight_map"].members()) {
    const std::string& file = shard.string();
    if (file.empty() || file.find('/') != std::string::npos || file.find('\\') != std::string::npos)
      fail("FILE_CORRUPT", index_path, ": tensor ", json_quote(name), ": expected the name of a file in this directory, got ", json_quote(file));
    SafetensorsFile*& opened = shards[file];
    if (!opened) {
      files_.push_back(std::make_unique<SafetensorsFile>(directory + "/" + file));
      opened = files_.back().get();
    }
    auto found = opened->tensors().find(name);
    if (found == opened->tensors().end())
      fail("TENSOR_MISSING", index_path, " places tensor ", json_quote(name), " in ", file, ", which does not hold it");
    add(*opened, name, found->second);
  }
}

void Checkpoint::add(const SafetensorsFile& file, const std::string& name, const TensorView& view) { entries_[name] = {view, &file}; }

const TensorView* Checkpoint::find(const std::string& name) const {
  auto found = entries_.find(name);
  return found == entries_.end() ? nullptr : &found->second.view;
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> out;
  for (const auto& entry : entries_) out.push_back(entry.first);
  return out;
}

void Checkpoint::release(const TensorView& tensor) const {
  for (const auto& file : files_) file->release(tensor);
}

void Checkpoint::prefetch(const TensorView& tensor) const {
  for (const auto& file : files_) file->prefetch(tensor);
}

SafetensorsWriter::SafetensorsWriter(const std::string& path, const std::vector<TensorHeader>& tensors,
                                     const std::map<std::string, std::string>& metadata, bool resume)
    : file_(path) {
  std::string header = "{";
  if (!metadata.empty()) {
    header += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) header += (header.back() == '{' ? "" : ",") + json_quote(key) + ":" + json_quote(value);
    header += "}";
  }
  size_t end = 0;
  for (const TensorHeader& tensor : tensors) {
    begins_.push_back(end);
    const size_t size = dtype_size(tensor.dtype);
    if (end % size) fail("INTERNAL", path, ": tensor ", json_quote(tensor.name), " would lie misaligned");
    const char* spelling = nullptr;
    for (const DtypeSpelling& s : kSpellings)
      if (s.dtype == tensor.dtype) spelling = s.name;
    std::string shape;
    for (int64_t d : tensor.shape) shape += (shape.empty() ? "" : ",") + std::to_string(d);
    end += TensorView{nullptr, tensor.dtype, tensor.shape}.bytes();
    header += text(header.size() == 1 ? "" : ",", json_quote(tensor.name), ":{\"dtype\":\"", spelling, "\",\"shape\":[", shape,
                   "],\"data_offsets\":[", begins_.back(), ",", end, "]}");
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const uint64_t length = header.size();
  std::string start(8, 0);
  for (int i = 0; i < 8; ++i) start[size_t(i)] = char(length >> (8 * i));
  start += header;
  for (size_t& begin : begins_) begin += start.size();
  const uint64_t total = start.size() + end, before = file_.size();
  if (resume && before == total) {
    std::string there(start.size(), 0);
    file_.read(0, there.data(), there.size());
    resumed_ = there == start;
  }
  if (resumed_) return;
  // An empty file is not cut to nothing: ext4 would then write everything to disk before close() returns.
  if (before > 0) file_.resize(0);
  file_.resize(total);
  file_.write(0, start.data(), start.size());
}

}  // namespace conan
