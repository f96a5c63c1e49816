#include "merge/source.h"

#include <algorithm>

#include "base/error.h"
#include "merge/kernels.h"

namespace conan::merge {

Source::Source(std::string subject, const TensorView& view, std::vector<std::unique_ptr<AdapterChange>> changes)
    : subject_(std::move(subject)), view_(view), changes_(std::move(changes)) {}

Source::Source(std::string subject, std::vector<int64_t> shape, std::vector<Run> runs) : subject_(std::move(subject)), runs_(std::move(runs)) {
  view_.shape = std::move(shape);
  int64_t rows = 0;
  for (const Run& run : runs_) {
    starts_.push_back(rows);
    rows += run.count;
  }
  if (view_.shape.empty() || rows != view_.shape[0])
    fail("INTERNAL", subject_, ": expected runs for ", shape_text(view_.shape), ", got ", rows, " rows");
}

void Source::read(int64_t first, int64_t count, float* out) const {
  if (runs_.empty()) {
    if (view_.dtype != Dtype::f32 && view_.dtype != Dtype::bf16 && view_.dtype != Dtype::f16)
      fail("UNSUPPORTED_DTYPE", subject_, ": expected float32, bfloat16 or float16, got ", dtype_name(view_.dtype));
    kernels().widen(view_.dtype, static_cast<const char*>(view_.data) + size_t(first) * dtype_size(view_.dtype), count, out);
    for (const auto& change : changes_) change->apply(first, count, out);
    return;
  }
  const int64_t cols = view_.size() / std::max<int64_t>(1, view_.shape[0]);
  std::vector<float> other;
  for (size_t r = size_t(std::upper_bound(starts_.begin(), starts_.end(), first / std::max<int64_t>(1, cols)) - starts_.begin()) - 1;
       r < runs_.size(); ++r) {
    const Run& run = runs_[r];
    const int64_t begin = starts_[r] * cols, end = begin + run.count * cols, from = std::max(first, begin), to = std::min(first + count, end);
    if (begin >= first + count) break;
    if (from < to) {
      float* at = out + (from - first);
      const int64_t n = to - from;
      std::fill(at, at + n, 0.f);
      for (size_t i = 0; i < run.from.size(); ++i) {
        const auto& [source, row] = run.from[i];
        const int64_t there = row * cols + (from - begin);
        if (run.from.size() == 1) {
          source->read(there, n, at);
          continue;
        }
        other.resize(size_t(n));
        source->read(there, n, other.data());
        for (int64_t k = 0; k < n; ++k) at[k] += other[size_t(k)] / float(run.from.size());
      }
    }
  }
}

}  // namespace conan::merge
