#include "merge/fuse.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>

#include "base/error.h"
#include "base/safetensors.h"
#include "base/thread_pool.h"
#include "merge/inputs.h"
#include "merge/methods.h"
#include "ops/backend.h"

namespace conan::merge {

namespace {

/// Fresh weights: uniform in (-bound, bound), every element by its own number (splitmix64 of Steele, Lea & Flood 2014).
void fill_uniform(Job& job) {
  const double bound = job.number("bound", 0);
  uint64_t key = job.seed * 0x9e3779b97f4a7c15u;
  for (const char c : job.name) key = (key ^ uint8_t(c)) * 0x100000001b3u;
  job.divide(false);
  job.produce([&](Block& block, Workspace&) {
    for (int64_t i = 0; i < block.n; ++i) {
      uint64_t z = key + uint64_t(block.first + i) * 0x9e3779b97f4a7c15u;
      z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
      z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
      block.out[i] = bound * (double((z ^ (z >> 31)) >> 11) * 0x1p-52 - 1);
    }
  });
}

}  // namespace

void merge(Job& job, const std::string& algorithm) {
  static const std::pair<const char*, void (*)(Job&)> table[] = {
      {"task_vectors", merge_task_vectors}, {"combination", merge_combination}, {"sce", merge_sce},
      {"arcee_fusion", merge_arcee_fusion}, {"nearswap", merge_nearswap},       {"ram", merge_ram},
      {"spectral", merge_spectral}};
  if (algorithm == "copy") {
    job.divide(false);
    job.copy(*job.parents.at(0).source);
    return;
  }
  if (algorithm == "uniform") return fill_uniform(job);
  if (algorithm == "identical") {  // what cannot be averaged: token ids, positions
    const Source& first = *job.parents.at(0).source;
    for (const Parent& parent : job.parents)
      if (parent.source->dtype() != first.dtype() || std::memcmp(parent.source->stored()->data, first.stored()->data, first.stored()->bytes()) != 0)
        fail("TENSOR_UNACCOUNTED", parent.source->subject(), ": expected the same ", dtype_name(first.dtype()), " values as ", first.subject(),
             ", got others; they cannot be averaged: copy them from one model (conan.groups)");
    job.divide(false);
    job.copy(first);
    return;
  }
  for (const auto& [name, function] : table)
    if (algorithm == name) return function(job);
  fail("INTERNAL", "unknown algorithm ", algorithm);
}

namespace {

Dtype dtype_of(const std::string& name) {
  for (int i = 0; i <= int(Dtype::f8_e5m2); ++i)
    if (name == dtype_name(Dtype(i))) return Dtype(i);
  fail("UNSUPPORTED_DTYPE", "expected a dtype, got ", json_quote(name));
}

std::string hex(uint64_t value) {
  char out[17];
  std::snprintf(out, sizeof out, "%016llx", static_cast<unsigned long long>(value));
  return out;
}

std::string number(double value) {
  char out[32];
  std::snprintf(out, sizeof out, "%.9g", value);
  return std::strpbrk(out, "in") ? "null" : out;
}

/// Lines are appended whole; what a killed run left half-written has no newline and is ignored.
class Journal {
 public:
  Journal(const std::string& path, const std::string& identity) : file_(path) {
    if (!file_.lock()) fail("OUTPUT_EXISTS", path, ": another run is at work here");
    const std::string first = "{\"identity\":" + json_quote(identity) + "}";
    const std::string text = read_text_file(path);
    size_t at = 0;
    for (size_t end; (end = text.find('\n', at)) != std::string::npos; at = end + 1) lines_.push_back(text.substr(at, end - at));
    resumed_ = !lines_.empty() && lines_[0] == first;
    if (resumed_) {
      lines_.erase(lines_.begin());
      append("");  // ends a half-written line
    } else {
      lines_.clear();
      file_.resize(0);
      append(first);
    }
  }

  bool resumed() const { return resumed_; }
  const std::vector<std::string>& lines() const { return lines_; }
  void append(const std::string& line) { file_.append(line + "\n"); }

 private:
  File file_;
  bool resumed_ = false;
  std::vector<std::string> lines_;
};

class TensorSink : public Sink {
 public:
  TensorSink(SafetensorsWriter& writer, size_t tensor) : writer_(writer), tensor_(tensor) {}
  void write(int64_t at, const void* data, int64_t bytes) override {
    checksum_ += kernels().checksum(data, bytes, at);
    writer_.write(tensor_, size_t(at), data, size_t(bytes));
  }
  uint64_t checksum() const { return checksum_; }

 private:
  SafetensorsWriter& writer_;
  size_t tensor_;
  std::atomic<uint64_t> checksum_{0};
};

class Fusion {
 public:
  Fusion(const std::string& plan, const std::atomic<bool>& cancelled, const std::function<void(int64_t, int64_t)>& progress)
      : plan_(Json::parse(plan, "the fusion plan")), progress_(progress), directory_(plan_["output"].string()), inputs_(plan_["checkpoints"]) {
    threads_ = int(plan_["threads"].integer());
    if (threads_ <= 0) threads_ = ThreadPool::default_threads();
    workspaces_.resize(size_t(threads_));
    if (const std::string device = plan_.has("device") ? plan_["device"].string() : "cpu"; device != "cpu") {
      const OperationTable& table = backend(device);
      if (!table.merge) fail("BACKEND_UNSUPPORTED", table.name, " cannot merge");
      device_ = std::make_unique<Context>(table, 1);
    }
    check_ = [&cancelled] {
      if (cancelled.load(std::memory_order_relaxed)) fail("ABORTED", "fusing was stopped");
    };
  }

  std::string run() {
    const std::vector<Json>& tensors = plan_["tensors"].items();
    lines_.resize(tensors.size());
    Journal journal(directory_ + "/fusion-journal.jsonl", plan_["identity"].string());
    open_files(journal.resumed());
    for (const std::string& line : journal.lines()) recall(line);
    require_space();
    for (const auto& file : files_)
      for (size_t i = 0; i < file.tensors.size(); ++i) {
        const size_t index = file.tensors[i];
        if (lines_[index].empty()) {
          prefetch_after(index);
          lines_[index] = make(tensors[index], index, *file.writer, i);
          journal.append(lines_[index]);
        }
        done_ += bytes_of(tensors[index]);
        progress_(done_, total_);
      }
    for (auto& file : files_) file.writer->close();
    std::string out = text("{\"resumed\":", resumed_, ",\"tensors\":[");
    for (size_t i = 0; i < lines_.size(); ++i) out += (i ? ",\n" : "\n") + lines_[i];
    return out + "\n]}";
  }

 private:
  struct File {
    std::unique_ptr<SafetensorsWriter> writer;
    std::vector<size_t> tensors;
  };

  static int64_t bytes_of(const Json& tensor) {
    return int64_t(TensorView{nullptr, dtype_of(tensor["dtype"].string()), shape_of(tensor["shape"])}.bytes());
  }

  void open_files(bool resume) {
    const std::vector<Json>& tensors = plan_["tensors"].items();
    for (const Json& file : plan_["files"].items()) {
      File opened;
      std::vector<TensorHeader> headers;
      for (const Json& index : file["tensors"].items()) {
        const Json& tensor = tensors.at(size_t(index.integer()));
        opened.tensors.push_back(size_t(index.integer()));
        headers.push_back({tensor["name"].string(), dtype_of(tensor["dtype"].string()), shape_of(tensor["shape"])});
        total_ += bytes_of(tensor);
      }
      const std::map<std::string, std::string> metadata = {{"format", "pt"}};
      opened.writer = std::make_unique<SafetensorsWriter>(directory_ + "/" + file["name"].string(), headers, metadata, resume);
      files_.push_back(std::move(opened));
    }
  }

  /// Takes over a tensor that an earlier run finished, if the file still holds what that run wrote.
  void recall(const std::string& line) {
    if (line.empty()) return;
    const Json entry = Json::parse(line, directory_ + "/fusion-journal.jsonl");
    const size_t index = size_t(entry["tensor"].integer());
    if (index >= lines_.size()) return;
    for (const File& file : files_)
      for (size_t i = 0; i < file.tensors.size(); ++i) {
        if (file.tensors[i] != index || !file.writer->resumed()) continue;
        const int64_t bytes = bytes_of(plan_["tensors"].items()[index]), piece = 1 << 20;
        std::atomic<uint64_t> sum{0};
        WorkQueue queue((bytes + piece - 1) / piece);
        ThreadPool::instance().run(threads_, [&](int) {
          std::vector<char> buffer(static_cast<size_t>(piece));
          for (int64_t part; queue.next(part);) {
            const int64_t at = part * piece, n = std::min(piece, bytes - at);
            file.writer->read(i, size_t(at), buffer.data(), size_t(n));
            sum += kernels().checksum(buffer.data(), n, at);
          }
        });
        if (hex(sum) != entry["checksum"].string()) continue;
        lines_[index] = line;
        ++resumed_;
      }
  }

  void require_space() {
    int64_t needed = 0;
    for (size_t i = 0; i < lines_.size(); ++i)
      if (lines_[i].empty()) needed += bytes_of(plan_["tensors"].items()[i]);
    const std::optional<uint64_t> free = free_space(directory_);
    if (free && *free < uint64_t(needed))
      fail("FILE_IO", directory_, ": expected ", needed, " bytes of free disk space for the fused model, found ", *free);
  }

  std::vector<const Json*> inputs_of(size_t index) const {
    const Json& tensor = plan_["tensors"].items()[index];
    std::vector<const Json*> refs = {&tensor["base"]};
    for (const Json& parent : tensor["parents"].items()) refs.push_back(&parent);
    return refs;
  }

  /// While this tensor is worked on, the disk reads the next one.
  void prefetch_after(size_t index) const {
    const size_t next = index + 1;
    if (next < lines_.size() && lines_[next].empty()) inputs_.prefetch(inputs_of(next));
  }

  std::string make(const Json& tensor, size_t index, SafetensorsWriter& writer, size_t place) {
    Held held;
    TensorSink sink(writer, place);
    Job job;
    job.name = tensor["name"].string();
    job.shape = shape_of(tensor["shape"]);
    job.dtype = dtype_of(tensor["dtype"].string());
    job.base = inputs_.source_of(tensor["base"], held);
    for (const Json& ref : tensor["parents"].items()) {
      Parent parent;
      parent.source = inputs_.source_of(ref, held);
      if (ref.has("weight")) parent.weight = ref["weight"].number();
      if (ref.has("density")) parent.density = ref["density"].number();
      if (ref.has("gamma")) parent.gamma = ref["gamma"].number();
      if (ref.has("epsilon")) parent.epsilon = ref["epsilon"].number();
      job.parents.push_back(parent);
    }
    for (const Json& patch : tensor["patches"].items())
      job.patches.push_back({patch["row"].integer(), inputs_.source_of(patch["source"], held), patch["sourceRow"].integer()});
    for (const Parent& parent : job.parents)
      if (parent.source->shape() != job.shape)
        fail("TENSOR_SHAPE", parent.source->subject(), ": expected ", shape_text(job.shape), ", got ", shape_text(parent.source->shape()));
    if (job.base && job.base->shape() != job.shape)
      fail("TENSOR_SHAPE", job.base->subject(), ": expected ", shape_text(job.shape), ", got ", shape_text(job.base->shape()));
    job.options = &tensor["options"];
    job.seed = uint64_t(plan_["seed"].integer());
    job.threads = threads_;
    job.workspaces = &workspaces_;
    job.sink = &sink;
    job.check = &check_;
    job.device = device_.get();
    merge(job, tensor["algorithm"].string());
    inputs_.release(inputs_of(index));

    std::string norms;
    for (double norm : job.statistics.norms) norms += (norms.empty() ? "" : ",") + number(norm);
    return text("{\"tensor\":", index, ",\"checksum\":\"", hex(sink.checksum()), "\",\"norms\":[", norms,
                "],\"conflicts\":", number(job.statistics.conflicts), "}");
  }

  Json plan_;
  const std::function<void(int64_t, int64_t)>& progress_;
  std::string directory_;
  Inputs inputs_;
  int threads_ = 1;
  std::vector<Workspace> workspaces_;
  std::function<void()> check_;
  std::unique_ptr<Context> device_;
  std::vector<File> files_;
  std::vector<std::string> lines_;  // of the journal, by tensor; empty: to do
  int64_t done_ = 0, total_ = 0, resumed_ = 0;
};

}  // namespace

std::string fuse(const std::string& plan, const std::atomic<bool>& cancelled, const std::function<void(int64_t, int64_t)>& progress) {
  return Fusion(plan, cancelled, progress).run();
}

}  // namespace conan::merge
