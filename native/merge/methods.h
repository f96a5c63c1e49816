// The algorithms that merge recipes are made of. Which recipe method is which algorithm with which options, with
// formulas and papers, is the table in lib/fuse/methods.ts; here each algorithm makes one output tensor.
#pragma once
#include <string>

#include "merge/job.h"

namespace conan::merge {

/// base + scale * consensus_p(weight_p * sparsify(x_p - base)): task arithmetic, TIES, DARE, DELLA, breadcrumbs.
/// Options: sparsifier (none, magnitude, outliers, random, rank_random), elect, normalize, rescale, lambda.
void merge_task_vectors(Job& job);

/// Weighted sums whose coefficients follow from the inner products of the parents, or of their task vectors: linear,
/// slerp, nuslerp, multislerp, karcher, model_stock, passthrough. Option: kind.
void merge_combination(Job& job);

/// Methods that choose entries by a statistic of their own.
void merge_sce(Job& job);
void merge_arcee_fusion(Job& job);
void merge_nearswap(Job& job);
void merge_ram(Job& job);

/// Methods on the singular vectors of task vectors; what is not a matrix is averaged. Option: kind (tsv_m, iso_c, wudi).
void merge_spectral(Job& job);

/// Runs the algorithm of that name.
void merge(Job& job, const std::string& algorithm);

}  // namespace conan::merge
