// Losses on the vectors of a batch, and their gradients by the vectors. Vectors come as the model makes them; they are brought to length 1
// here, at every size that the loss looks at (Matryoshka).
#pragma once
#include <cstdint>
#include <vector>

#include "ops/ops.h"
#include "train/packed.h"

namespace conan::train {

/// For each query the documents that belong to it; all other documents of the batch are its negatives, save those of `excluded`.
struct Contrastive {
  std::vector<int32_t> queries, documents;      // rows of the vectors, none twice in one of them
  std::vector<std::vector<int32_t>> positives;  // per query, indices into documents
  double temperature = 0.02;
  bool both_directions = false;  // documents look for their queries as well
  double margin = -1;            // >= 0: what is more similar than the positive by this is no negative
};

/// Pairs of rows with a grade: pairs of a higher grade shall be more similar (CoSENT).
struct Graded {
  std::vector<int32_t> left, right;
  std::vector<double> grades;
  double scale = 20;
};

/// Rows that shall become like a teacher's vectors.
struct Distillation {
  std::vector<int32_t> rows;
  Matrix teacher;         // [rows, any number of dimensions]
  double relations = 20;  // weight of the second part of the loss
};

struct Matryoshka {
  std::vector<int64_t> dimensions;  // first components looked at; empty: all
  std::vector<double> weights;      // of each; empty: 1
};

/// Mean over queries, and over their positives, of -log(e^(s+/t) / (e^(s+/t) + sum over negatives of e^(s/t))), s the cosine; with both
/// directions the mean of the two. dy [rows, C] is overwritten with `factor` times the gradient. By operations: vectors and dy lie with the
/// device.
double contrastive_loss(Context& context, const Matrix& vectors, const Contrastive& pairs, const Matryoshka& matryoshka, double factor,
                        const Matrix& dy, PackedMatrices& packed);
/// log(1 + sum over pairs (i, j), grade i > grade j, of e^(scale (cos j - cos i))). By the host, as the next: dy is the gradient.
double graded_loss(const Matrix& vectors, const Graded& pairs, const Matryoshka& matryoshka, const Matrix& dy);
/// Mean over rows of 1 - cos(row, teacher), where the teacher has the model's dimensions (compared at every size), plus `relations` times
/// the mean over pairs of rows of (their cosine - that of the teacher's)^2. As the first stage of Jasper and Stella (Zhang et al. 2024).
double distillation_loss(const Matrix& vectors, const Distillation& teacher, const Matryoshka& matryoshka, const Matrix& dy);

}  // namespace conan::train
