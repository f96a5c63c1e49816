// Sparsify, weigh, elect, add: the family of task arithmetic (Ilharco et al. 2023), TIES (Yadav et al. 2023), DARE
// (Yu et al. 2024), DELLA (Deep et al. 2024) and model breadcrumbs (Davari & Belilovsky 2024).
#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include "base/error.h"
#include "merge/methods.h"
#include "merge/select.h"

namespace conan::merge {

namespace {

uint64_t hash_text(const std::string& text) {
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
  for (unsigned char c : text) hash = (hash ^ c) * 0x100000001b3u;
  return hash;
}

/// Sorts by the upper halves, equal ones as they stand (radix sort, a byte at a time).
void sort_by_magnitude(uint64_t* values, uint64_t* spare, int64_t n) {
  int64_t counts[4][256] = {};
  for (int64_t i = 0; i < n; ++i)
    for (int byte = 0; byte < 4; ++byte) ++counts[byte][values[i] >> (32 + 8 * byte) & 255];
  for (int byte = 0; byte < 4; ++byte) {
    int64_t* places = counts[byte];
    for (int64_t value = 0, at = 0; value < 256; ++value) at += std::exchange(places[value], at);
    for (int64_t i = 0; i < n; ++i) spare[places[values[i] >> (32 + 8 * byte) & 255]++] = values[i];
    std::swap(values, spare);
  }
}

enum class Sparsify { none, all, magnitude, outliers, random, rank_random };

/// Decides which entries of one parent's task vector stay; the others are set to the base.
class Sparsifier {
 public:
  Sparsifier(const Job& job, size_t parent, const std::string& kind) : job_(job), parent_(parent), p_(job.parents[parent]) {
    key_ = (job.seed * 0x9e3779b97f4a7c15u) ^ hash_text(job.name) ^ ((parent + 1) * 0xd1342543de82ef95u);
    const double density = p_.density;
    const int64_t n = job.size();
    if (kind == "none" || density >= 1 || n == 0) {
      kind_ = Sparsify::none;
    } else if (density <= 0) {
      kind_ = Sparsify::all;
    } else if (kind == "magnitude") {
      kind_ = Sparsify::magnitude;
      ranks_ = {std::max<int64_t>(1, int64_t(density * double(n))), 0};
    } else if (kind == "outliers") {
      kind_ = Sparsify::outliers;
      const int64_t keep = int64_t(density * double(n)), below = std::max<int64_t>(0, n - keep - int64_t(p_.gamma * double(n)));
      ranks_ = {n - below, n - below - keep};
    } else if (kind == "random") {
      kind_ = Sparsify::random;
    } else if (kind == "rank_random") {
      kind_ = Sparsify::rank_random;
      if (density + p_.epsilon >= 1 || density - p_.epsilon <= 0)
        fail("CONFIG_INVALID", p_.source->subject(), ": density +- epsilon: expected both between 0 and 1, got ", density, " +- ", p_.epsilon);
    } else {
      fail("INTERNAL", "unknown sparsifier ", kind);
    }
  }

  bool none() const { return kind_ == Sparsify::none; }

  /// What must be selected before apply(): the entries that stay are among the ranks_[0] largest, not the ranks_[1] largest.
  std::vector<Selection> selections() const {
    std::vector<Selection> out;
    for (int64_t k : ranks_) out.push_back({magnitudes(), k});
    return out;
  }
  void take(std::vector<Cut> cuts) { cuts_ = std::move(cuts); }

  /// The magnitudes (bits) that stay in a block; false where they are not a range.
  bool range(const Block& block, uint32_t& from, uint32_t& to) const {
    if (kind_ == Sparsify::random || kind_ == Sparsify::rank_random) return false;
    from = 0;
    to = 0x7fffffff;
    if (kind_ == Sparsify::all) from = to;
    if (cuts_.empty()) return true;
    const Cut::Share outer = cuts_[0].share(job_, block), inner = cuts_[1].share(job_, block);
    from = outer.from;
    to = inner.from - 1;
    return outer.quota < 0 && inner.quota < 0;
  }

  /// For DELLA, which looks at whole rows, the blocks of a chunk must come in order.
  void apply(Block& block, Workspace& workspace) const {
    float* x = block.x[parent_];
    const Kernels& k = kernels();
    switch (kind_) {
      case Sparsify::none: return;
      case Sparsify::all: std::copy(block.base, block.base + block.n, x); return;
      case Sparsify::magnitude:
      case Sparsify::outliers: keep_ranks(block, x); return;
      case Sparsify::random: k.keep_random(x, block.base, block.n, key_, block.first, p_.density, nullptr); return;
      case Sparsify::rank_random: {
        const int64_t start = block.chunk * job_.chunk(), length = std::min(job_.chunk(), job_.size() - start);
        std::vector<float>& all = workspace.chunk_floats;
        all.resize(job_.parents.size() * size_t(job_.chunk()));
        float* probability = all.data() + parent_ * size_t(job_.chunk());
        if (block.first == start) rank_probabilities(start, length, probability);
        k.keep_random(x, block.base, block.n, key_, block.first, p_.density, probability + (block.first - start));
        return;
      }
    }
  }

 private:
  Magnitudes magnitudes() const {
    const Source *source = p_.source, *base = job_.base;
    const uint16_t *stored = Job::stored_bf16(source), *stored_base = Job::stored_bf16(base);
    if (stored && stored_base)
      return
          [=](int64_t first, int64_t n, Workspace&, uint32_t* bits) { kernels().magnitude_bits_bf16(stored + first, stored_base + first, n, bits); };
    return [=](int64_t first, int64_t n, Workspace& workspace, uint32_t* bits) {
      float *x = workspace.take(2 * kBlock), *b = x + kBlock;
      source->read(first, n, x);
      base->read(first, n, b);
      kernels().magnitude_bits(x, b, n, bits);
    };
  }

  void keep_ranks(Block& block, float* x) const {
    const Cut::Share outer = cuts_[0].share(job_, block), inner = cuts_[1].share(job_, block);
    if (outer.quota < 0 && inner.quota < 0) {
      kernels().keep_between(x, block.base, block.n, outer.from, inner.from - 1);
      return;
    }
    // The one block in which the entries equal to a threshold run out.
    uint32_t bits[kBlock];
    kernels().magnitude_bits(x, block.base, block.n, bits);
    int64_t outer_seen = 0, inner_seen = 0;
    for (int64_t i = 0; i < block.n; ++i) {
      const bool in_outer = cuts_[0].holds(outer, bits[i], outer_seen), in_inner = cuts_[1].holds(inner, bits[i], inner_seen);
      if (!in_outer || in_inner) x[i] = block.base[i];
    }
  }

  /// From density - epsilon for the smallest magnitude of a row to density + epsilon for the largest, even steps.
  void rank_probabilities(int64_t start, int64_t length, float* probability) const {
    const int64_t cols = job_.cols();
    std::vector<uint64_t> order(static_cast<size_t>(cols)), spare(static_cast<size_t>(cols));
    std::vector<float> x(static_cast<size_t>(cols)), base(static_cast<size_t>(cols));
    for (int64_t row = 0; row < length; row += cols) {
      const int64_t n = std::min(cols, length - row);
      p_.source->read(start + row, n, x.data());
      job_.base->read(start + row, n, base.data());
      for (int64_t done = 0; done < n; done += kBlock) {
        uint32_t bits[kBlock];
        const int64_t part = std::min(kBlock, n - done);
        kernels().magnitude_bits(x.data() + done, base.data() + done, part, bits);
        for (int64_t i = 0; i < part; ++i) order[size_t(done + i)] = uint64_t(bits[i]) << 32 | uint64_t(done + i);
      }
      sort_by_magnitude(order.data(), spare.data(), n);
      for (int64_t rank = 0; rank < n; ++rank) {
        const double share = n > 1 ? double(rank) / double(n - 1) : 0;
        probability[row + int64_t(uint32_t(order[size_t(rank)]))] = float(p_.density - p_.epsilon + share * 2 * p_.epsilon);
      }
    }
  }

  const Job& job_;
  size_t parent_;
  const Parent& p_;
  Sparsify kind_;
  uint64_t key_;
  std::vector<int64_t> ranks_;
  std::vector<Cut> cuts_;
};

}  // namespace

void merge_task_vectors(Job& job) {
  const std::string& kind = (*job.options)["sparsifier"].string();
  const bool elect = job.flag("elect", false), normalize = job.flag("normalize", false), rescale = job.flag("rescale", false);
  job.divide(kind == "rank_random");
  std::vector<Sparsifier> sparsifiers;
  std::vector<double> coefficients, weights;
  const size_t count = job.parents.size();
  bool any = false;
  for (size_t p = 0; p < count; ++p) {
    sparsifiers.emplace_back(job, p, kind);
    any = any || !sparsifiers[p].none();
    coefficients.push_back(job.parents[p].weight);
    weights.push_back(job.parents[p].weight);
  }
  std::vector<Selection> selections;
  for (const Sparsifier& sparsifier : sparsifiers)
    for (Selection& selection : sparsifier.selections()) selections.push_back(std::move(selection));
  if (!selections.empty()) {
    auto cut = select_largest(job, selections);
    auto next = cut.begin();
    for (Sparsifier& sparsifier : sparsifiers)
      if (const auto ranks = std::ptrdiff_t(sparsifier.selections().size())) {
        sparsifier.take({std::make_move_iterator(next), std::make_move_iterator(next + ranks)});
        next += ranks;
      }
  }
  if (rescale && any) {
    // What is left of a task vector gets back the L1 norm that the whole had.
    const std::vector<double> sums = job.scan(2 * count, [&](Block& block, Workspace& workspace, double* sum) {
      for (size_t p = 0; p < count; ++p) {
        if (sparsifiers[p].none()) continue;
        sum[2 * p] += kernels().sum_magnitudes(block.x[p], block.base, block.n);
        sparsifiers[p].apply(block, workspace);
        sum[2 * p + 1] += kernels().sum_magnitudes(block.x[p], block.base, block.n);
      }
    });
    for (size_t p = 0; p < count; ++p)
      if (sums[2 * p] >= 1e-7 && sums[2 * p + 1] >= 1e-7) coefficients[p] *= sums[2 * p] / sums[2 * p + 1];
  }
  double scale = job.number("lambda", 1);
  if (normalize && !elect) {
    double sum = 0;
    for (double w : weights) sum += w;
    if (std::abs(sum) >= 1e-8) scale /= sum;
  }

  // One specialist at full strength is that specialist, to the last bit.
  std::vector<size_t> active;
  for (size_t p = 0; p < count; ++p)
    if (coefficients[p] != 0) active.push_back(p);
  const bool whole = !any && active.size() == 1 && (elect && normalize ? scale == 1 : coefficients[active[0]] * scale == 1);

  const auto body = [&](Block& block, Workspace& workspace) {
    if (whole) {
      std::copy(block.x[active[0]], block.x[active[0]] + block.n, block.out);
      return;
    }
    if (any)
      for (const Sparsifier& sparsifier : sparsifiers) sparsifier.apply(block, workspace);
    Combination c;
    c.parents = int(count);
    c.x = block.x.data();
    c.base = block.base;
    c.coefficients = coefficients.data();
    c.weights = weights.data();
    c.elect = elect;
    c.normalize = normalize;
    c.scale = scale;
    kernels().combine(c, block.n, block.out);
  };

  // bf16 to bf16, if what stays is a range of magnitudes: in one go, except for blocks where equal ones are divided.
  Stream stream;
  stream.coefficients = coefficients.data();
  stream.weights = weights.data();
  stream.elect = elect;
  stream.normalize = normalize;
  stream.scale = scale;
  const auto open = [&](Stream& s, const Block& block, Workspace& workspace) {
    if (whole) return false;
    if (!any) return true;
    workspace.bits.resize(2 * count);
    uint32_t *from = workspace.bits.data(), *to = from + count;
    for (size_t p = 0; p < count; ++p)
      if (!sparsifiers[p].range(block, from[p], to[p])) return false;
    s.from = from;
    s.to = to;
    return true;
  };
  if (!job.produce_stream(stream, open, body)) job.produce(body);
}

}  // namespace conan::merge
