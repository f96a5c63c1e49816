#!/usr/bin/env bash
# Builds the addon for other platforms, on Linux, into prebuilds: with clang, libc++ and the systems' own libraries as the package ziglang on PyPI
# holds them. (GCC for Windows does not align AVX registers on the stack.)
# Arguments: of win32-x64, linux-arm64, linux-x64-musl, linux-arm64-musl; default: all.
set -euo pipefail
cd "$(dirname "$0")/.."

node -e "import('./scripts/setup.mjs').then((setup) => setup.install())"
if ! ls build/zig/lib/python3*/site-packages/ziglang/zig > /dev/null 2>&1; then
  python3 -m venv build/zig
  build/zig/bin/pip install -q 'ziglang==0.17.1'
fi
zig=$(realpath build/zig/lib/python3*/site-packages/ziglang/zig)

platforms=("$@")
if [ $# = 0 ]; then platforms=(win32-x64 linux-arm64 linux-x64-musl linux-arm64-musl); fi
for platform in "${platforms[@]}"; do
  case $platform in
    win32-x64) system=Windows processor=x86_64 target=x86_64-windows-gnu name=conan_embedding ;;
    linux-arm64) system=Linux processor=aarch64 target=aarch64-linux-gnu.2.28 name=conan_embedding.glibc ;;
    linux-x64-musl) system=Linux processor=x86_64 target=x86_64-linux-musl name=conan_embedding.musl ;;
    linux-arm64-musl) system=Linux processor=aarch64 target=aarch64-linux-musl name=conan_embedding.musl ;;
    *) echo "build-cross.sh: expected win32-x64, linux-arm64, linux-x64-musl or linux-arm64-musl, got $platform" >&2 && exit 2 ;;
  esac
  out=$PWD/build/$platform
  mkdir -p "$out/tools"
  for tool in cc c++ ar ranlib; do
    arguments=$([[ $tool == c* ]] && echo "-target $target" || true)
    printf '#!/bin/sh\nexec %s %s %s "$@"\n' "$zig" "$tool" "$arguments" > "$out/tools/$tool"
    chmod +x "$out/tools/$tool"
  done
  if [ $system = Windows ]; then
    sed -nE 's/^(napi|node_api)_[a-z0-9_]+/CONAN_NODE(&)/p' node_modules/node-api-headers/def/node_api.def > "$out/node_api.inc"
    # For the test in Wine, which lacks it before version 9: what tokenizers and sharp take random numbers from.
    "$out/tools/cc" -shared -O2 -o "$out/bcryptprimitives.dll" -x c - -ladvapi32 << 'C'
#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID, ULONG);
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE bytes, SIZE_T count) { return SystemFunction036(bytes, (ULONG)count); }
C
  fi
  cmake -S . -B "$out" -DCMAKE_SYSTEM_NAME=$system -DCMAKE_SYSTEM_PROCESSOR=$processor -DCMAKE_CXX_COMPILER="$out/tools/c++" -DCMAKE_AR="$out/tools/ar" \
    -DCMAKE_RANLIB="$out/tools/ranlib" -DCMAKE_JS_INC="$PWD/node_modules/node-api-headers/include" -DCONAN_ZIG=ON > /dev/null
  cmake --build "$out" --parallel 2 --target conan_embedding
  mkdir -p "prebuilds/${platform%-musl}"
  cp "$out/conan_embedding.node" "prebuilds/${platform%-musl}/$name.node"
  ls -l "prebuilds/${platform%-musl}/$name.node"
done
