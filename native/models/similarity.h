// How near vectors are to each other, all of one list to all of another.
#pragma once
#include <string>

#include "ops/ops.h"

namespace conan {

/// As sentence-transformers has them; of distances the negative, so that larger is always nearer.
enum class Similarity { cosine, dot, euclidean, manhattan };
/// Error INVALID_INPUT where there is none of the name.
Similarity similarity_named(const std::string& name);

/// out[i][j] = the similarity of a's row i [A, D] and b's row j [B, D], in single precision; that of a row of zeros is 0 by cosine. It does not
/// depend on the other rows, nor on which of the two is `a`.
void similarities(Context& context, Similarity measure, const Matrix& a, const Matrix& b, const Matrix& out);

}  // namespace conan
