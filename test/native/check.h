// A test program in a page: CHECK counts, and the program says how many held.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"

namespace conan::test {

inline int passed = 0, failed = 0;

inline void check(bool holds, const std::string& what) {
  if (holds) {
    ++passed;
    return;
  }
  ++failed;
  std::printf("FAILED: %s\n", what.c_str());
}

/// Runs `action` and checks that it fails with this code.
template <class Action>
void check_error(const std::string& code, const std::string& what, const Action& action) {
  try {
    action();
    check(false, what + ": expected error " + code + ", nothing was thrown");
  } catch (const Error& error) {
    check(error.code() == code, what + ": expected error " + code + ", got " + error.code() + ": " + error.what());
  }
}

inline int report(const char* program) {
  std::printf("%s: %d passed, %d failed\n", program, passed, failed);
  return failed ? 1 : 0;
}

/// Normally distributed (Marsaglia's polar method), and the same everywhere, as those of the standard library are not: a tolerance that
/// holds for these numbers holds on every platform.
inline std::vector<float> random_floats(size_t n, unsigned seed, float spread = 1) {
  std::mt19937 engine(seed);
  const auto uniform = [&] { return std::min(float(engine()) / 4294967296.f, std::nextafter(1.f, 0.f)) * 2 - 1; };
  std::vector<float> out(n);
  for (size_t i = 0; i < n; i += 2) {
    float x, y, square;
    do {
      x = uniform(), y = uniform();
      square = x * x + y * y;
    } while (square > 1 || square == 0);
    const float length = std::sqrt(-2 * std::log(square) / square);
    out[i] = y * length * spread;
    if (i + 1 < n) out[i + 1] = x * length * spread;
  }
  return out;
}

}  // namespace conan::test
