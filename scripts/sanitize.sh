#!/usr/bin/env bash
# The native tests under AddressSanitizer and UBSan, with a longer fuzz run over the safetensors reader, and the CUDA kernels by emulation.
# Usage: scripts/sanitize.sh [mutations, default 200000]
set -euo pipefail
cd "$(dirname "$0")/.."
cmake -S . -B build/sanitize -DCONAN_TESTS=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCONAN_SANITIZE=address,undefined > /dev/null
cmake --build build/sanitize --parallel 2
./build/sanitize/ops_test
./build/sanitize/safetensors_test "${1:-200000}"
./build/sanitize/model_test test/fixtures/pico
./build/sanitize/merge_test
for kernels in wgmma mma; do
  ASAN_OPTIONS=detect_leaks=0 CONAN_CUDA_LIBRARY=build/sanitize/libconan-cuda-emulated.so CONAN_CUDA_GEMM=$kernels ./build/sanitize/ops_test cuda:0
done
