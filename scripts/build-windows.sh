#!/usr/bin/env bash
# Builds the addon for Windows on x64, on Linux, into prebuilds/win32-x64: with clang, libc++ and MinGW's libraries as the package ziglang on PyPI
# holds them. (GCC for Windows does not align AVX registers on the stack.)
set -euo pipefail
cd "$(dirname "$0")/.."

node -e "import('./scripts/setup.mjs').then((setup) => setup.install())"
if [ ! -d build/zig/tools ]; then
  python3 -m venv build/zig
  build/zig/bin/pip install -q 'ziglang==0.17.1'
  zig=$(realpath build/zig/lib/python3*/site-packages/ziglang/zig)
  mkdir build/zig/tools
  for tool in cc c++ ar ranlib dlltool; do
    target=$([[ $tool == c* ]] && echo '-target x86_64-windows-gnu' || true)
    printf '#!/bin/sh\nexec %s %s %s "$@"\n' "$zig" "$tool" "$target" > "build/zig/tools/$tool"
    chmod +x "build/zig/tools/$tool"
  done
fi
tools=$PWD/build/zig/tools
out=$PWD/build/windows
mkdir -p "$out" prebuilds/win32-x64
# What the addon takes from the program that loads it.
"$tools/dlltool" -d node_modules/node-api-headers/def/node_api.def -D node.exe -m i386:x86-64 -l "$out/libnode.a"
cmake -S . -B "$out" -DCMAKE_SYSTEM_NAME=Windows -DCMAKE_SYSTEM_PROCESSOR=x86_64 -DCMAKE_CXX_COMPILER="$tools/c++" -DCMAKE_AR="$tools/ar" \
  -DCMAKE_RANLIB="$tools/ranlib" -DCMAKE_JS_INC="$PWD/node_modules/node-api-headers/include" -DCMAKE_JS_LIB="$out/libnode.a" "$@" > /dev/null
cmake --build "$out" --parallel 2
# For the test in Wine, which lacks it before version 9: what tokenizers and sharp take random numbers from.
"$tools/cc" -shared -O2 -o "$out/bcryptprimitives.dll" -x c - -ladvapi32 << 'C'
#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID, ULONG);
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE bytes, SIZE_T count) { return SystemFunction036(bytes, (ULONG)count); }
C
cp "$out/conan_embedding.node" prebuilds/win32-x64/
ls -l prebuilds/win32-x64/conan_embedding.node
