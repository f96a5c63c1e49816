#!/usr/bin/env bash
# On a machine with an NVIDIA GPU and no network: builds the CUDA library and the native tests, runs the operation table and whole models on
# the GPU against the CPU, the memory and race checkers where they are installed, then the benchmarks beside PyTorch; a short table last. Needs
# nvcc, CMake and a C++20 compiler. Output goes into the directory $OUT, or build/gpu-check. Arguments: the steps wanted; default: all.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-build/gpu-check}
mkdir -p "$out"
wanted=" $* "
started=$SECONDS
report=()
step() { # name command...
  local name=$1 began=$SECONDS
  [ "$wanted" = "  " ] || [[ "$wanted" == *" $name "* ]] || return 0
  shift
  # What is measured is shown at once: a run may be cut off.
  if "$@" 2>&1 | tee "$out/$name.log" > "$([[ $name =~ ^(bench|peer|forward|train|profile) ]] && echo /dev/stdout || echo /dev/null)"; then
    report+=("$(printf '%-14s ok      %4d s  %s' "$name" $((SECONDS - began)) "$(tail -1 "$out/$name.log")")")
  else
    report+=("$(printf '%-14s FAILED  %4d s  %s' "$name" $((SECONDS - began)) "$(grep -m1 -E 'FAILED|error|Error' "$out/$name.log" || tail -1 "$out/$name.log")")")
  fi
}

capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)
[ "$capability" = 90 ] && capability=90a
step build-cuda scripts/build-cuda.sh "$capability-real"
step build-tests bash -c 'cmake -S . -B build/native-tests -DCONAN_TESTS=ON && cmake --build build/native-tests --parallel 16 --target ops_test model_test cuda_bench forward_bench train_bench'
export CONAN_CUDA_LIBRARY=$PWD/build/Release/libconan-cuda.so
step ops timeout 60 build/native-tests/ops_test
step ops-mma env CONAN_CUDA_GEMM=mma timeout 60 build/native-tests/ops_test cuda:0
step models timeout 60 build/native-tests/model_test test/fixtures/pico
if command -v compute-sanitizer > /dev/null; then
  step memcheck timeout 100 compute-sanitizer --error-exitcode 1 build/native-tests/ops_test cuda:0
  step racecheck timeout 100 compute-sanitizer --tool racecheck --error-exitcode 1 build/native-tests/ops_test cuda:0 linear attention
  step racecheck-back timeout 100 compute-sanitizer --tool racecheck --error-exitcode 1 build/native-tests/ops_test cuda:0 rows merge backward
else
  report+=("memcheck, racecheck skipped: no compute-sanitizer on PATH")
fi
step bench timeout 60 build/native-tests/cuda_bench
step bench-mma env CONAN_CUDA_GEMM=mma timeout 60 build/native-tests/cuda_bench
if python3 -c 'import torch, transformers' 2> /dev/null; then
  step peer timeout 60 python3 bench/gpu_peer.py
  step forward timeout 240 python3 bench/gpu_forward.py build/native-tests/forward_bench ${FORWARD_OPTIONS:-}
  # Where the time goes: not among what all checks are, as it is slow.
  [[ "$wanted" == *" profile "* ]] && step profile timeout 120 python3 bench/gpu_profile.py build/native-tests/{forward,train}_bench ${PROFILE_OPTIONS:-}
  step train timeout 180 python3 bench/gpu_train.py build/native-tests/train_bench ${TRAIN_OPTIONS:-}
else
  report+=("peer, forward, train skipped: no Python with torch and transformers")
fi
printf '%s\n' "--- $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -1), $((SECONDS - started)) s" "${report[@]}"
