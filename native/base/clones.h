// Loops that are compiled for several instruction sets and chosen when the library is loaded. For plain loops whose result does not
// depend on how wide they run: whole numbers, or sums in separate lanes.
#pragma once

#include <climits>  // __GLIBC__: other libraries of Linux cannot choose when they load (musl)

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define CONAN_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CONAN_CLONES
#endif
