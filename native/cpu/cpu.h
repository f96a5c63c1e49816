// What the files of this folder share.
#pragma once
#include "ops/ops.h"

namespace conan::cpu {

const OperationTable& reference_table();

// Small or bound by memory, and the same on every instruction set: the definitions are what runs.
void embed_backward(Context&, const EmbedBackwardArgs&);
void contrast(Context&, const ContrastArgs&);
void pool_backward(Context&, const PoolBackwardArgs&);
void normalize_backward(Context&, const NormalizeBackwardArgs&);

}  // namespace conan::cpu
