// Takes tensors from a checkpoint by the names an architecture uses, whatever prefix the saved model put before them;
// checks shapes, merges LoRA adapters on the way, and knows in the end what nobody asked for.
#pragma once
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/adapter.h"
#include "base/safetensors.h"
#include "ops/ops.h"

namespace conan {

/// A small tensor in f32 that is used as it lies. Copies share the values, so that training can change them in their place.
class Values {
 public:
  Values() = default;
  explicit Values(std::vector<float> values) : values_(std::make_shared<std::vector<float>>(std::move(values))) {}

  bool empty() const { return !values_ || values_->empty(); }
  size_t size() const { return values_ ? values_->size() : 0; }
  const void* id() const { return values_.get(); }  // what copies share
  float* data() const { return empty() ? nullptr : values_->data(); }
  float operator[](size_t i) const { return (*values_)[i]; }
  std::vector<float>& storage() {
    if (!values_) values_ = std::make_shared<std::vector<float>>();
    return *values_;
  }

 private:
  std::shared_ptr<std::vector<float>> values_;
};

/// Part of a checkpoint's tensor inside something made from several: elements [at, at + count) hold name's elements from `first` on.
struct ValuesPart {
  std::string name;
  size_t at = 0, count = 0;
  float offset = 0;  // added to the stored values
};

/// What a matrix was packed from: rows of tensors, one below the other.
struct WeightParts {
  std::vector<std::string> names;  // of tensors
  std::vector<int64_t> rows;
  int64_t cols = 0;
  int64_t channels = 0;          // > 0: a row is stored [channels, taps] and packed [taps, channels] (convolutions)
  std::vector<int64_t> first{};  // of its tensor's rows, for each part; empty: all are whole tensors

  int64_t first_of(size_t part) const { return first.empty() ? 0 : first[part]; }
};

/// The columns of rows [rows, channels * taps] from stored order to packed order, or `back`.
std::vector<float> reorder_taps(const float* values, int64_t rows, int64_t cols, int64_t channels, bool back);

/// Follows what becomes of a checkpoint's tensors, and may put others in their place: training.
class WeightObserver {
 public:
  virtual ~WeightObserver() = default;
  /// The tensor to use for the stored one of that (full) name; the stored one itself where it does not train.
  virtual TensorView use(const std::string& name, const TensorView& stored) = 0;
  virtual WeightFormat format(const WeightParts& parts, WeightFormat wanted) = 0;
  /// `source` stays readable as long as the model lives.
  virtual void packed(Weight& weight, const WeightParts& parts, const WeightSource& source, const Checkpoint& checkpoint) = 0;
  virtual void taken(const Values& values, const ValuesPart& part) = 0;
  /// Whether what stands there changes as the model trains.
  virtual bool wants(const Values& values) const = 0;
  virtual bool wants(const TensorView& table) const = 0;
};

class WeightLoader {
 public:
  /// The prefix is whatever stands before `probe` (a tensor every model of the architecture has) in the one name that
  /// ends with it.
  /// With `problems`, nothing is read: what take() would fail with is listed there instead, for `inspect`.
  WeightLoader(const Checkpoint& checkpoint, std::vector<std::unique_ptr<Adapter>>& adapters, const std::string& probe,
               std::vector<std::string>* problems = nullptr, WeightObserver* observer = nullptr);
  /// Whether what is loaded will be trained: then products that are fused elsewhere stay apart.
  bool training() const { return observer_ != nullptr; }
  /// Whether training changes a tensor of take().
  bool changes(const TensorView& table) const { return observer_ && observer_->wants(table); }

  bool has(const std::string& name) const { return checkpoint_.find(prefix_ + name) != nullptr; }
  /// The tensor, checked to have this shape; with adapters applied it is a copy that lives as long as this loader.
  TensorView take(const std::string& name, const std::vector<int64_t>& shape);
  /// A small tensor in f32, `offset` added; WEIGHT_NOT_FINITE where it holds a NaN or an infinity.
  Values take_values(const std::string& name, const std::vector<int64_t>& shape, float offset = 0);
  /// The same behind what `values` holds already.
  void append_values(Values& values, const std::string& name, const std::vector<int64_t>& shape, float offset = 0);
  /// Module `name` as "name.weight"; [rows_i, cols] each, stacked and packed.
  std::unique_ptr<Weight> pack(Context& context, const std::vector<std::string>& names, const std::vector<int64_t>& rows, int64_t cols,
                               WeightFormat format, bool gated = false);
  /// Rows [first, first + count) of module `name` [rows, cols].
  std::unique_ptr<Weight> pack_slice(Context& context, const std::string& name, int64_t rows, int64_t cols, int64_t first, int64_t count,
                                     WeightFormat format);
  /// Module `name` [2 * half, cols] with its second half before its first.
  std::unique_ptr<Weight> pack_swapped(Context& context, const std::string& name, int64_t half, int64_t cols, WeightFormat format, bool gated);
  /// A tensor of take() in another shape of two dimensions.
  std::unique_ptr<Weight> pack_view(Context& context, const std::string& name, const TensorView& view, WeightFormat format);
  /// Module `name`, whose weight is stored with `shape` [outputs, channels, taps ...] or [outputs, channels * taps]: packed
  /// [outputs, taps * channels].
  std::unique_ptr<Weight> pack_convolution(Context& context, const std::string& name, const std::vector<int64_t>& shape, int64_t channels,
                                           WeightFormat format);
  /// lm_head.weight outside the prefix, for checkpoints that store only that of a tied pair.
  bool has_head() const { return checkpoint_.find("lm_head.weight") != nullptr; }
  TensorView take_head(const std::vector<int64_t>& shape);

  /// Fails if a tensor whose name starts with prefix + `layers` was not taken: the config does not describe this model.
  void require_all_used(const std::string& layers) const;
  std::vector<std::string> unused() const;  // sorted
  /// Once everything is loaded: small tensors that do not train get a copy where the device wants one.
  void reside(Context& context, std::vector<Resident>& residents) const;
  const std::set<std::string>& taken() const { return taken_; }
  const std::string& prefix() const { return prefix_; }

 private:
  TensorView checked(const std::string& full, const std::vector<int64_t>& shape);
  /// Tells the observer. What take() made since there were `merged` copies is not needed afterwards.
  std::unique_ptr<Weight> pack(Context& context, const WeightSource& source, const WeightParts& parts, WeightFormat format, size_t merged);

  const Checkpoint& checkpoint_;
  std::vector<std::unique_ptr<Adapter>>& adapters_;
  std::vector<std::string>* problems_;
  WeightObserver* observer_;
  std::string prefix_;
  std::set<std::string> taken_;
  std::vector<std::unique_ptr<std::vector<float>>> merged_;
  std::map<const void*, Values> small_;  // by what copies share
};

}  // namespace conan
