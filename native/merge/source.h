// One tensor of one parent as float32, whatever it is stored as: widened, with low-rank adapters added, with its rows
// taken in another order (vocabularies that number their tokens differently). Read range by range; nothing is held.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "base/adapter.h"
#include "base/tensor.h"

namespace conan::merge {

class Source {
 public:
  /// `subject` names the tensor in errors: directory and name.
  Source(std::string subject, const TensorView& view, std::vector<std::unique_ptr<AdapterChange>> changes = {});

  /// Where the rows of the result come from, run by run.
  struct Run {
    int64_t count;                                        // rows of the result
    std::vector<std::pair<const Source*, int64_t>> from;  // first row in each; the mean of several
  };
  /// A tensor whose rows come from others of the same width; none: zeros.
  Source(std::string subject, std::vector<int64_t> shape, std::vector<Run> runs);

  const std::string& subject() const { return subject_; }
  const std::vector<int64_t>& shape() const { return view_.shape; }
  Dtype dtype() const { return view_.dtype; }
  /// Elements [first, first + count) of the flattened tensor. Any thread.
  void read(int64_t first, int64_t count, float* out) const;
  /// The tensor as it is stored; null where it is computed.
  const TensorView* stored() const { return changes_.empty() && runs_.empty() ? &view_ : nullptr; }

 private:
  std::string subject_;
  TensorView view_;
  std::vector<std::unique_ptr<AdapterChange>> changes_;
  std::vector<Run> runs_;
  std::vector<int64_t> starts_;  // first row of each run
};

}  // namespace conan::merge
