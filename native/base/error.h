// The one error type of the native side. `code` is a stable string (the table with meanings, HTTP status
// and exit code is lib/errors.ts); `what()` names the subject, what was expected and what was received.
#pragma once
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace conan {

class Error : public std::runtime_error {
 public:
  Error(std::string code, const std::string& message) : std::runtime_error(message), code_(std::move(code)) {}
  const std::string& code() const { return code_; }

 private:
  std::string code_;
};

/// Joins its arguments into one string: text("expected ", 3, ", got ", n).
template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <class... Parts>
[[noreturn]] void fail(const char* code, const Parts&... parts) {
  throw Error(code, text(parts...));
}

}  // namespace conan
