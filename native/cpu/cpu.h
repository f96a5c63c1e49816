// What the files of this folder share.
#pragma once
#include "ops/ops.h"

namespace conan::cpu {

const OperationTable& reference_table();

}  // namespace conan::cpu
