#!/usr/bin/env bash
# Builds libconan-cuda.so beside the addon (build/Release). Where no nvcc is on PATH, it installs a pinned one from PyPI into build/nvcc.
# Arguments: architectures as CMake takes them; default: sm_80, sm_90a and PTX for what comes later.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v nvcc > /dev/null; then
  found=$(find build/nvcc -path '*/cu13/bin/nvcc' 2> /dev/null | head -1 || true)
  if [ -z "$found" ]; then
    # 13.0: later ones raise the oldest driver that will do (R580).
    python3 -m venv build/nvcc
    build/nvcc/bin/pip install -q 'nvidia-cuda-nvcc==13.0.*' 'nvidia-nvvm==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-cuda-runtime==13.0.*' \
      'nvidia-cuda-cccl==13.0.*'
    found=$(find build/nvcc -path '*/cu13/bin/nvcc' | head -1)
  fi
  PATH="$(dirname "$(realpath "$found")"):$PATH"
fi
toolkit=$(dirname "$(dirname "$(command -v nvcc)")")
architectures=${1:-80-real;90a-real;80-virtual}
flags=(-std=c++20 -O3 -Inative -Xcompiler=-fPIC,-fvisibility=hidden -Xptxas=-v --expt-relaxed-constexpr --extended-lambda -compress-mode=size)
IFS=';' read -ra list <<< "$architectures"
for architecture in "${list[@]}"; do
  number=${architecture%%-*}
  case $architecture in
    *-virtual) flags+=("-gencode=arch=compute_$number,code=compute_$number") ;;
    *) flags+=("-gencode=arch=compute_$number,code=sm_$number") ;;
  esac
done

objects=build/cuda
mkdir -p "$objects" build/Release
mapfile -t sources < <(grep -o 'native/cuda/[a-z_]*\.cu' native/sources.gypi | xargs -n 1 basename -s .cu)
compiled=("${sources[@]/%/.o}")
pids=()
for source in "${sources[@]}"; do
  if [ -f "$objects/$source.o" ] && [ "$(cat "$objects/flags" 2> /dev/null)" = "$architectures" ] &&
    [ -z "$(find native/cuda native/ops native/base -newer "$objects/$source.o" -print -quit)" ]; then continue; fi
  nvcc "${flags[@]}" -c "native/cuda/$source.cu" -o "$objects/$source.o" > "$objects/$source.log" 2>&1 &
  pids+=($!)
done
for pid in "${pids[@]}"; do
  wait "$pid" || { grep -hE 'error|fatal' "$objects"/*.log >&2; exit 1; }
done
# The compiler says so, and no more, where products of warpgroups have to wait for one another.
if grep -h 'wgmma.*serialized' "$objects"/*.log >&2; then exit 1; fi
echo "$architectures" > "$objects/flags"
for source in tensor old_glibc; do
  g++ -std=c++20 -O3 -fPIC -fvisibility=hidden -Inative -c "native/base/$source.cpp" -o "$objects/$source.o"
done
# Where glibc is older than 2.34, what the first versions (old_glibc.cpp) stand in are libraries of their own.
apart=()
for library in libpthread.so.0 libdl.so.2 librt.so.1; do
  file=$(g++ -print-file-name="$library")
  if [[ $file == /* ]]; then apart+=("$file"); fi
done
# libgcc stays shared, here and in the addon: an error crosses from one to the other only where both unwind by the same.
g++ -shared -o build/Release/libconan-cuda.so "${compiled[@]/#/$objects/}" "$objects"/{tensor,old_glibc}.o -L"$toolkit/lib" -L"$toolkit/lib64" -lcudart_static -lpthread -ldl -lrt \
  -static-libstdc++ -Wl,--exclude-libs,ALL -Wl,-z,defs -Wl,--gc-sections -Wl,@native/base/old_glibc.flags \
  -Wl,--no-as-needed "${apart[@]}"
ls -l build/Release/libconan-cuda.so
