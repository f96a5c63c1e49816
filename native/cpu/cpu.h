// What the files of this folder share.
#pragma once
#include "ops/ops.h"

namespace conan::cpu {

const OperationTable& reference_table();

/// Aligned to a line of the cache. Errors: OUT_OF_MEMORY.
void* allocate(size_t bytes);
void release(void* memory, size_t bytes);

// Small or bound by memory, and the same on every instruction set: the definitions are what runs.
void embed_backward(Context&, const EmbedBackwardArgs&);
void contrast(Context&, const ContrastArgs&);
void pool_backward(Context&, const PoolBackwardArgs&);
void normalize_backward(Context&, const NormalizeBackwardArgs&);

}  // namespace conan::cpu
