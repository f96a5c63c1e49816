// Exact selection by rank: which entries of a tensor are among its k largest magnitudes. Equal magnitudes count in the
// order of their places, so exactly k are chosen.
#pragma once
#include <functional>
#include <vector>

#include "merge/job.h"

namespace conan::merge {

/// The k largest: everything above `bits`, and the first `taken` of the entries equal to it.
struct Cut {
  uint32_t bits = 0;
  int64_t taken = 0, equal = 0;
  int64_t blocks_per_chunk = 1;
  std::vector<uint32_t> equal_in;  // entries equal to `bits` in each block; empty where all are taken
  std::vector<int64_t> before;     // and before each chunk

  /// For one block: entries of at least `from` belong, and where `quota` >= 0 also the first `quota` of those equal to bits.
  struct Share {
    uint32_t from;
    int64_t quota;
  };
  Share share(const Job& job, const Block& block) const;
  /// Whether the next entry of the block, of this magnitude, belongs; `seen` counts the equal ones and starts at 0.
  bool holds(const Share& share, uint32_t magnitude, int64_t& seen) const {
    return magnitude >= share.from || (share.quota >= 0 && magnitude == bits && seen++ < share.quota);
  }
};

/// Writes the magnitudes (bits of non-negative floats, which order as they do) of elements [first, first + n).
using Magnitudes = std::function<void(int64_t first, int64_t n, Workspace& workspace, uint32_t* bits)>;

struct Selection {
  Magnitudes magnitudes;
  int64_t k = 0;  // 0 .. size
};

/// One cut for each selection, over job's elements and chunks.
std::vector<Cut> select_largest(const Job& job, const std::vector<Selection>& selections);

}  // namespace conan::merge
