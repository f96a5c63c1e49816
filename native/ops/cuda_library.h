// What libconan-cuda.so says to the addon that opens it: three functions with C linkage.
#pragma once
#include <cstddef>

#include "ops/ops.h"

namespace conan::cuda {

/// Of ops.h as both sides see it; they must agree. Raise the first number with every change of an argument; the second is the table's size.
constexpr int abi_version = 10 * 1000 + int(sizeof(OperationTable) / sizeof(void*));

}  // namespace conan::cuda

extern "C" {
int conan_cuda_version();
/// What the GPU with that number is called, and its memory in bytes; 0 and a reason where there is none that can be used.
int conan_cuda_score(int device, char* text, size_t size, size_t* memory);
/// The table of that GPU, for the life of the process; null and a reason.
const conan::OperationTable* conan_cuda_init(int device, char* reason, size_t size);
}
