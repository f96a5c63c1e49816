// The functions of Node on Windows, where a library has to say which program it takes them from: node.exe, but electron.exe or any other name
// where the program is one's own. So they are asked of the program that runs, when the addon is loaded. scripts/build-cross.sh makes their list.
#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#define CONAN_NODE(name)                                                    \
  extern "C" {                                                              \
  FARPROC conan_##name;                                                     \
  __attribute__((naked)) void name() { asm("jmp *conan_" #name "(%rip)"); } \
  }
#include "node_api.inc"
#undef CONAN_NODE

namespace {

[[maybe_unused]] const bool found = [] {
  const HMODULE program = GetModuleHandleW(nullptr);
#define CONAN_NODE(name) conan_##name = GetProcAddress(program, #name);
#include "node_api.inc"
#undef CONAN_NODE
  return true;
}();

}  // namespace
#endif
