// A test program in a page: CHECK counts, and the program says how many held.
#pragma once
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

inline std::vector<float> random_floats(size_t n, unsigned seed, float spread = 1) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> out(n);
  for (float& x : out) x = normal(engine);
  return out;
}

}  // namespace conan::test
