#include "base/json.h"

#include <cmath>
#include <cstdlib>
#include <unordered_set>

#include "base/error.h"

namespace conan {

namespace {
constexpr int kMaxDepth = 64;
}

class JsonReader {
 public:
  JsonReader(std::string_view text, const std::string& subject) : text_(text), subject_(subject) {}

  Json document() {
    Json value = read(0);
    skip_space();
    if (at_ != text_.size()) wrong("nothing after the value");
    return value;
  }

 private:
  std::string_view text_;
  const std::string& subject_;
  size_t at_ = 0;

  [[noreturn]] void wrong(const char* expected) const {
    fail("FILE_CORRUPT", subject_, ": not valid JSON at byte ", at_, ": expected ", expected, ", got ",
         at_ < text_.size() ? json_quote(text_.substr(at_, 1)) : std::string("the end"));
  }
  void skip_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r')) ++at_;
  }
  bool take(char c) {
    if (at_ < text_.size() && text_[at_] == c) return ++at_, true;
    return false;
  }
  bool take_word(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Json read(int depth) {
    if (depth > kMaxDepth) fail("FILE_CORRUPT", subject_, ": JSON nested deeper than ", kMaxDepth, " levels");
    skip_space();
    Json value;
    if (at_ >= text_.size()) wrong("a value");
    char c = text_[at_];
    if (c == '{') {
      read_object(value, depth);
    } else if (c == '[') {
      ++at_;
      value.kind_ = Json::Kind::array;
      skip_space();
      if (take(']')) return value;
      do {
        value.items_.push_back(read(depth + 1));
        skip_space();
      } while (take(','));
      if (!take(']')) wrong("',' or ']'");
    } else if (c == '"') {
      value.kind_ = Json::Kind::string;
      value.string_ = read_string();
    } else if (take_word("true")) {
      value.kind_ = Json::Kind::boolean;
      value.boolean_ = true;
    } else if (take_word("false")) {
      value.kind_ = Json::Kind::boolean;
    } else if (take_word("null")) {
      // a null Json is the default
    } else if (take_word("NaN") || take_word("Infinity") || take_word("-Infinity")) {
      // Python's json writes these; no key that is read here may hold them, so they count as absent
    } else {
      read_number(value);
    }
    return value;
  }

  void read_object(Json& value, int depth) {
    ++at_;
    value.kind_ = Json::Kind::object;
    skip_space();
    if (take('}')) return;
    std::unordered_set<std::string> seen;
    do {
      skip_space();
      if (at_ >= text_.size() || text_[at_] != '"') wrong("a key");
      std::string key = read_string();
      if (!seen.insert(key).second) fail("FILE_CORRUPT", subject_, ": JSON key ", json_quote(key), " appears twice");
      skip_space();
      if (!take(':')) wrong("':'");
      Json member = read(depth + 1);
      value.members_.emplace_back(std::move(key), std::move(member));
      skip_space();
    } while (take(','));
    if (!take('}')) wrong("',' or '}'");
  }

  unsigned read_hex4() {
    unsigned code = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      char c = at_ < text_.size() ? text_[at_] : '\0';
      if (c >= '0' && c <= '9') code = code * 16 + unsigned(c - '0');
      else if (c >= 'a' && c <= 'f') code = code * 16 + unsigned(c - 'a' + 10);
      else if (c >= 'A' && c <= 'F') code = code * 16 + unsigned(c - 'A' + 10);
      else wrong("four hexadecimal digits");
    }
    return code;
  }

  static void append_utf8(std::string& out, unsigned code) {
    if (code < 0x80) {
      out += char(code);
    } else if (code < 0x800) {
      out += char(0xc0 | (code >> 6));
      out += char(0x80 | (code & 63));
    } else if (code < 0x10000) {
      out += char(0xe0 | (code >> 12));
      out += char(0x80 | ((code >> 6) & 63));
      out += char(0x80 | (code & 63));
    } else {
      out += char(0xf0 | (code >> 18));
      out += char(0x80 | ((code >> 12) & 63));
      out += char(0x80 | ((code >> 6) & 63));
      out += char(0x80 | (code & 63));
    }
  }

  std::string read_string() {
    ++at_;
    std::string out;
    while (true) {
      if (at_ >= text_.size()) wrong("'\"'");
      unsigned char c = static_cast<unsigned char>(text_[at_]);
      if (c < 0x20) wrong("no control character in a string");
      ++at_;
      if (c == '"') return out;
      if (c != '\\') {
        out += char(c);
        continue;
      }
      char escape = at_ < text_.size() ? text_[at_++] : '\0';
      switch (escape) {
        case '"':
        case '\\':
        case '/': out += escape; break;
        case 'b': out += '\b'; break;
        case 'f': out += '\f'; break;
        case 'n': out += '\n'; break;
        case 'r': out += '\r'; break;
        case 't': out += '\t'; break;
        case 'u': {
          unsigned code = read_hex4();
          if (code >= 0xd800 && code < 0xdc00 && take_word("\\u")) {
            unsigned low = read_hex4();
            if (low < 0xdc00 || low > 0xdfff) wrong("a low surrogate");
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
          } else if (code >= 0xd800 && code < 0xe000) {
            code = 0xfffd;  // a lone surrogate has no UTF-8 form
          }
          append_utf8(out, code);
          break;
        }
        default: wrong("an escape character");
      }
    }
  }

  void read_number(Json& value) {
    size_t start = at_;
    take('-');
    if (!take('0')) {
      if (at_ >= text_.size() || text_[at_] < '1' || text_[at_] > '9') wrong("a value");
      while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
    }
    bool integral = true;
    auto digits = [&] {
      size_t first = at_;
      while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
      if (first == at_) wrong("a digit");
    };
    if (take('.')) integral = false, digits();
    if (at_ < text_.size() && (text_[at_] == 'e' || text_[at_] == 'E')) {
      ++at_;
      integral = false;
      if (!take('+')) take('-');
      digits();
    }
    std::string literal(text_.substr(start, at_ - start));
    value.kind_ = Json::Kind::number;
    value.number_ = std::strtod(literal.c_str(), nullptr);
    // 2^53: beyond it (model_max_length 1e30) a number is no exact integer and is not used as one.
    value.integral_ = integral && std::fabs(value.number_) <= 9007199254740992.0;
    if (value.integral_) value.integer_ = int64_t(value.number_);
  }
};

Json Json::parse(std::string_view text, const std::string& subject) { return JsonReader(text, subject).document(); }

const Json& Json::operator[](std::string_view key) const {
  static const Json null;
  for (const auto& [name, value] : members_)
    if (name == key) return value;
  return null;
}

std::string json_quote(std::string_view text) {
  static const char* hex = "0123456789abcdef";
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += "\\u00";
      out += hex[(c >> 4) & 15];
      out += hex[c & 15];
    } else {
      out += c;
    }
  }
  return out + "\"";
}

}  // namespace conan
