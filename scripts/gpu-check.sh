#!/usr/bin/env bash
# On a machine with an NVIDIA GPU and no network, within ten minutes: builds the CUDA library and the native tests, runs the operation table
# and whole models on the GPU against the CPU, the memory and race checkers where they are installed, then the benchmarks beside PyTorch; a
# short table last. All that was measured goes into gpu-check.json in the directory $OUT, or build/gpu-check, with a log of each step beside it.
# Needs nvcc, CMake and a C++20 compiler. Arguments: the steps wanted; default: all but `profile`. Exit status: 0 where no step failed, was cut
# off, or found no time left (of $CONAN_GPU_CHECK_SECONDS, 590).
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-build/gpu-check}
budget=${CONAN_GPU_CHECK_SECONDS:-590}
wanted=" $* "
names=()
mkdir -p "$out"

wants() { [[ "$wanted" == *" $1 "* || ("$wanted" == "  " && $1 != profile) ]]; }
# What became of a step: ok, FAILED, cut off, not run or skipped; its seconds; and a line of what it said.
became() { printf '%s\t%s\t%s\n' "$2" "$3" "$4" > "$out/$1.status"; }
# attempt NAME SECONDS COMMAND...
attempt() {
  local name=$1 most=$2 began=$SECONDS left=$((budget - SECONDS)) status
  shift 2
  [ "$left" -gt 5 ] || { became "$name" 'not run' 0 "no time left of $budget s"; return; }
  export CONAN_BENCH_RESULTS=$out/$name.jsonl
  rm -f "$CONAN_BENCH_RESULTS"
  timeout -k 5 $((most < left ? most : left)) "$@" 2>&1 | tee "$out/$name.log"
  status=${PIPESTATUS[0]}
  local took=$((SECONDS - began)) last
  last=$(tail -1 "$out/$name.log")
  case $status in
    0) became "$name" ok "$took" "$last" ;;
    124 | 137) became "$name" 'cut off' "$took" "$last" ;;
    *) became "$name" FAILED "$took" "$(grep -m1 -E 'FAILED|error|Error' "$out/$name.log" || printf %s "$last")" ;;
  esac
}
# check NAME SECONDS COMMAND...: beside the other checks, as nothing is timed; `wait` is for all of them.
check() {
  wants "$1" || return 0
  names+=("$1")
  attempt "$@" > /dev/null &
}
# bench NAME SECONDS COMMAND...: alone, and shown at once, as a run may be cut off.
bench() {
  wants "$1" || return 0
  names+=("$1")
  attempt "$@"
}
skip() { # WHY NAME...
  local why=$1 name
  shift
  for name in "$@"; do wants "$name" && names+=("$name") && became "$name" skipped 0 "$why"; done
}

capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)
[ "$capability" = 90 ] && capability=90a
check build-cuda 300 scripts/build-cuda.sh "$capability-real"
check build-tests 300 bash -c 'cmake -S . -B build/native-tests -DCONAN_TESTS=ON &&
  cmake --build build/native-tests --parallel 16 --target ops_test model_test cuda_bench forward_bench train_bench'
wait

export CONAN_CUDA_LIBRARY=${CONAN_CUDA_LIBRARY:-$PWD/build/Release/libconan-cuda.so}
tests=build/native-tests
check ops 120 $tests/ops_test
check ops-mma 120 env CONAN_CUDA_GEMM=mma $tests/ops_test cuda:0
check models 120 $tests/model_test test/fixtures/pico
races=(linear packed narrow attention rows merge backward)
if command -v compute-sanitizer > /dev/null; then
  check memcheck 200 compute-sanitizer --error-exitcode 1 $tests/ops_test cuda:0
  for group in "${races[@]}"; do
    check "race-$group" 240 compute-sanitizer --tool racecheck --error-exitcode 1 $tests/ops_test cuda:0 "$group"
  done
else
  skip 'no compute-sanitizer on PATH' memcheck "${races[@]/#/race-}"
fi
wait

bench bench 60 $tests/cuda_bench
if python3 -c 'import torch, transformers' 2> /dev/null; then
  bench forward 180 python3 bench/gpu_forward.py $tests/forward_bench ${FORWARD_OPTIONS:-}
  bench train 150 python3 bench/gpu_train.py $tests/train_bench ${TRAIN_OPTIONS:-}
  bench peer 60 python3 bench/gpu_peer.py
  bench forward-8B 120 python3 bench/gpu_forward.py $tests/forward_bench --models 8B-9 --inputs 512x64,128-896x64 --compiled 512x64
  bench profile 120 python3 bench/gpu_profile.py $tests/forward_bench $tests/train_bench ${PROFILE_OPTIONS:-}
else
  skip 'no Python with torch and transformers' forward train peer forward-8B profile
fi
bench bench-mma 60 env CONAN_CUDA_GEMM=mma $tests/cuda_bench

escaped() { printf %s "$1" | tr -d '\000-\037' | sed 's/\\/\\\\/g; s/"/\\"/g'; }
gpu=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -1)
json=() table=() measured=() whole=0
for name in "${names[@]}"; do
  IFS=$'\t' read -r state took line < "$out/$name.status"
  [[ $state == ok || $state == skipped ]] || whole=1
  table+=("$(printf '%-14s %-8s %4d s  %s' "$name" "$state" "$took" "$line")")
  results=''
  if [[ $state != skipped && $state != 'not run' && -f $out/$name.jsonl ]]; then
    results=$(paste -sd, "$out/$name.jsonl")
    [[ $name == *-mma ]] || measured+=("$out/$name.jsonl")
  fi
  json+=("$(printf '{"step": "%s", "state": "%s", "seconds": %d, "line": "%s", "results": [%s]}' "$name" "$state" "$took" "$(escaped "$line")" "$results")")
done
printf '{"gpu": "%s", "seconds": %d, "steps": [\n%s\n]}\n' "$(escaped "$gpu")" "$SECONDS" "$(printf '%s\n' "${json[@]}" | sed '$!s/$/,/')" > "$out/.gpu-check.json"
mv "$out/.gpu-check.json" "$out/gpu-check.json"
printf '%s\n' "--- $gpu, $SECONDS s" "${table[@]}"
command -v python3 > /dev/null && python3 bench/gpu_results.py "${measured[@]}"
exit $whole
