#!/usr/bin/env bash
# The native tests under AddressSanitizer and UBSan, with a longer fuzz run over the safetensors reader.
# Usage: scripts/sanitize.sh [mutations, default 200000]
set -euo pipefail
cd "$(dirname "$0")/.."
cmake -S . -B build/sanitize -DCONAN_TESTS=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCONAN_SANITIZE=address,undefined > /dev/null
cmake --build build/sanitize --parallel 2
./build/sanitize/ops_test
./build/sanitize/safetensors_test "${1:-200000}"
./build/sanitize/model_test test/fixtures/pico
./build/sanitize/merge_test
