#include "merge/select.h"

#include <algorithm>
#include <cmath>

#include "base/thread_pool.h"

namespace conan::merge {

namespace {

constexpr int64_t kSample = 1 << 15, kRun = 16;  // a sample is taken in runs of neighbours, evenly over the tensor
constexpr int kLowBits = 15;
constexpr size_t kHighBins = 1 << 16, kLowBins = 1 << kLowBits;

/// Which bin holds the entry of rank k (1: in the last bin that is not empty); k becomes its rank inside that bin.
template <class Count>
size_t bin_of(const std::vector<Count>& bins, int64_t& k) {
  size_t bin = bins.size();
  while (bin-- > 0) {
    if (int64_t(bins[bin]) >= k) return bin;
    k -= int64_t(bins[bin]);
  }
  return 0;
}

/// Where a value surely lies, as far as a sample can tell.
struct Bracket {
  uint32_t low = 0, high = 0x7fffffff;
  double share = 1;  // of the sample that lies in it
};

/// Magnitudes rise with their upper 16 bits, so bins of those are the steps in which a bracket is chosen.
Bracket guess(const Job& job, const Selection& selection, Workspace& workspace) {
  const int64_t n = job.size();
  std::vector<uint32_t> bits(size_t(std::min(n, kSample))), bins(kHighBins);
  if (n <= kSample)
    for (int64_t first = 0; first < n; first += kBlock) selection.magnitudes(first, std::min(kBlock, n - first), workspace, bits.data() + first);
  else
    for (int64_t run = 0, runs = kSample / kRun; run < runs; ++run)
      selection.magnitudes(int64_t(double(n - kRun) * double(run) / double(runs - 1)), kRun, workspace, bits.data() + run * kRun);
  for (uint32_t b : bits) ++bins[b >> kLowBits];
  const double size = double(bits.size()), share = double(selection.k) / double(n);
  // A sample of all is no guess; else four standard deviations to both sides.
  const double slack = n <= kSample ? 0 : 4 * std::sqrt(share * (1 - share) / size) + 2 / size;
  int64_t upper = int64_t(std::floor((share - slack) * size)), lower = int64_t(std::ceil((share + slack) * size));
  Bracket bracket;
  if (upper >= 1) bracket.high = uint32_t(bin_of(bins, upper)) << kLowBits | (kLowBins - 1);
  if (lower <= int64_t(size)) bracket.low = uint32_t(bin_of(bins, lower)) << kLowBits;
  int64_t inside = 0;
  for (size_t bin = bracket.low >> kLowBits; bin <= bracket.high >> kLowBits; ++bin) inside += bins[bin];
  bracket.share = double(inside) / size;
  return bracket;
}

struct Found {  // in one chunk
  int64_t above = 0;
  std::vector<uint32_t> bits, places;
};

/// The value of rank k among what was found (1: the largest).
uint32_t ranked(const std::vector<Found>& found, Bracket bracket, int64_t k) {
  int shift = 0;
  while (((bracket.high - bracket.low) >> shift) >= (1 << 12)) ++shift;
  std::vector<int64_t> bins(size_t((bracket.high - bracket.low) >> shift) + 1);
  for (const Found& chunk : found)
    for (uint32_t b : chunk.bits) ++bins[(b - bracket.low) >> shift];
  const size_t bin = bin_of(bins, k);
  std::vector<uint32_t> values;
  for (const Found& chunk : found)
    for (uint32_t b : chunk.bits)
      if ((b - bracket.low) >> shift == bin) values.push_back(b);
  std::nth_element(values.begin(), values.begin() + (k - 1), values.end(), std::greater<uint32_t>());
  return values[size_t(k - 1)];
}

template <class Body>
void for_blocks(const Job& job, const Magnitudes& magnitudes, const Body& body) {
  job.for_chunks([&](int64_t chunk, int64_t first, int64_t count, Workspace& workspace) {
    uint32_t bits[kBlock];
    for (int64_t done = 0; done < count; done += kBlock) {
      const int64_t n = std::min(kBlock, count - done);
      magnitudes(first + done, n, workspace, bits);
      body(chunk, done / kBlock, n, bits, size_t(&workspace - job.workspaces->data()));
    }
  });
}

/// Two histograms, of the upper and then the lower bits: whatever the values are.
Cut by_histogram(const Job& job, const Selection& selection) {
  std::vector<std::vector<uint32_t>> counts(job.workspaces->size());
  auto total = [&](size_t bins) {  // whole numbers add up to the same in any order
    std::vector<int64_t> sum(bins);
    for (auto& count : counts) {
      for (size_t i = 0; i < count.size(); ++i) sum[i] += count[i];
      count.clear();
    }
    return sum;
  };
  for_blocks(job, selection.magnitudes, [&](int64_t, int64_t, int64_t n, const uint32_t* bits, size_t worker) {
    std::vector<uint32_t>& count = counts[worker];
    count.resize(kHighBins);
    for (int64_t i = 0; i < n; ++i) ++count[bits[i] >> kLowBits];
  });
  int64_t left = selection.k;
  const uint32_t high = uint32_t(bin_of(total(kHighBins), left));
  for_blocks(job, selection.magnitudes, [&](int64_t, int64_t, int64_t n, const uint32_t* bits, size_t worker) {
    std::vector<uint32_t>& count = counts[worker];
    count.resize(kLowBins);
    for (int64_t i = 0; i < n; ++i)
      if (bits[i] >> kLowBits == high) ++count[bits[i] & (kLowBins - 1)];
  });
  const std::vector<int64_t> low = total(kLowBins);
  const size_t bin = bin_of(low, left);
  Cut cut;
  cut.bits = high << kLowBits | uint32_t(bin);
  cut.taken = left;
  cut.equal = low[bin];
  return cut;
}

}  // namespace

Cut::Share Cut::share(const Job& job, const Block& block) const {
  if (taken == equal) return {bits, -1};
  const size_t start = size_t(block.chunk * blocks_per_chunk), index = start + size_t((block.first - block.chunk * job.chunk()) / kBlock);
  int64_t left = taken - before[size_t(block.chunk)];
  if (left <= 0) return {bits + 1, -1};
  if (left >= before[size_t(block.chunk) + 1] - before[size_t(block.chunk)]) return {bits, -1};
  for (size_t i = start; i < index; ++i) left -= equal_in[i];
  if (left <= 0) return {bits + 1, -1};
  if (left >= equal_in[index]) return {bits, -1};
  return {bits + 1, left};
}

std::vector<Cut> select_largest(const Job& job, const std::vector<Selection>& selections) {
  const size_t count = selections.size();
  std::vector<Cut> cuts(count);
  std::vector<Bracket> brackets(count);
  std::vector<char> listed(count);
  const auto for_selections = [&](const std::function<void(size_t, Workspace&)>& body) {
    WorkQueue queue{int64_t(count)};
    ThreadPool::instance().run(std::min(job.threads, int(count)), [&](int worker) {
      for (int64_t i; queue.next(i);) body(size_t(i), (*job.workspaces)[size_t(worker)]);
    });
  };
  for_selections([&](size_t i, Workspace& workspace) {
    if (selections[i].k <= 0) return;
    brackets[i] = guess(job, selections[i], workspace);
    // Many equal values, or a sample that says little: lists would grow long.
    listed[i] = brackets[i].share * double(job.size()) < double(std::max<int64_t>(kSample, std::min<int64_t>(job.size() / 16, 1 << 23)));
  });

  // One pass lists what lies in the brackets.
  std::vector<std::vector<Found>> found(count, std::vector<Found>(size_t(job.chunks())));
  if (std::any_of(listed.begin(), listed.end(), [](char l) { return l; }))
    job.for_chunks([&](int64_t chunk, int64_t first, int64_t elements, Workspace& workspace) {
      std::vector<uint32_t>& room = workspace.bits;
      room.resize(size_t(2 * (elements + 16)));
      for (size_t i = 0; i < count; ++i) {
        if (!listed[i]) continue;
        Found& own = found[i][size_t(chunk)];
        uint32_t *values = room.data(), *places = values + elements + 16, bits[kBlock];
        int64_t length = 0;
        for (int64_t done = 0; done < elements; done += kBlock) {
          const int64_t n = std::min(kBlock, elements - done);
          selections[i].magnitudes(first + done, n, workspace, bits);
          length += kernels().find_bracket(bits, n, brackets[i].low, brackets[i].high, uint32_t(done), values + length, places + length, own.above);
        }
        own.bits.assign(values, values + length);
        own.places.assign(places, places + length);
      }
    });
  for_selections([&](size_t i, Workspace&) {
    if (!listed[i]) return;
    int64_t above = 0, inside = 0, equal = 0, over = 0;
    for (const Found& chunk : found[i]) above += chunk.above, inside += int64_t(chunk.bits.size());
    const int64_t left = selections[i].k - above;
    if (left < 1 || left > inside) {  // the sample misled
      listed[i] = false;
      return;
    }
    Cut& cut = cuts[i];
    cut.bits = ranked(found[i], brackets[i], left);
    for (const Found& chunk : found[i])
      for (uint32_t b : chunk.bits) equal += b == cut.bits, over += b > cut.bits;
    cut.taken = left - over;
    cut.equal = equal;
  });

  for (size_t i = 0; i < count; ++i) {
    Cut& cut = cuts[i];
    if (selections[i].k <= 0) cut.bits = 0x7fffffff;  // nothing is above this
    else if (!listed[i]) cut = by_histogram(job, selections[i]);
    if (cut.taken == cut.equal) continue;
    cut.blocks_per_chunk = (job.chunk() + kBlock - 1) / kBlock;
    cut.equal_in.assign(size_t(job.chunks() * cut.blocks_per_chunk), 0);
    if (listed[i]) {
      for (int64_t chunk = 0; chunk < job.chunks(); ++chunk) {
        const Found& own = found[i][size_t(chunk)];
        for (size_t e = 0; e < own.bits.size(); ++e)
          cut.equal_in[size_t(chunk * cut.blocks_per_chunk + own.places[e] / kBlock)] += own.bits[e] == cut.bits;
      }
    } else {
      for_blocks(job, selections[i].magnitudes, [&](int64_t chunk, int64_t block, int64_t n, const uint32_t* bits, size_t) {
        uint32_t equal = 0;
        for (int64_t e = 0; e < n; ++e) equal += bits[e] == cut.bits;
        cut.equal_in[size_t(chunk * cut.blocks_per_chunk + block)] = equal;
      });
    }
    cut.before.assign(size_t(job.chunks()) + 1, 0);
    for (int64_t chunk = 0; chunk < job.chunks(); ++chunk) {
      int64_t sum = cut.before[size_t(chunk)];
      for (int64_t b = 0; b < cut.blocks_per_chunk; ++b) sum += cut.equal_in[size_t(chunk * cut.blocks_per_chunk + b)];
      cut.before[size_t(chunk) + 1] = sum;
    }
  }
  return cuts;
}

}  // namespace conan::merge
