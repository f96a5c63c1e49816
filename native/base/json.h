// A small strict JSON reader (RFC 8259) for config files and safetensors headers, which may be hostile:
// nesting is capped, numbers are checked, duplicate keys are an error.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace conan {

class Json {
 public:
  enum class Kind { null, boolean, number, string, array, object };

  /// `subject` names the text in errors ("config.json").
  static Json parse(std::string_view text, const std::string& subject);

  Kind kind() const { return kind_; }
  bool is_null() const { return kind_ == Kind::null; }
  bool is_number() const { return kind_ == Kind::number; }
  bool is_integer() const { return kind_ == Kind::number && integral_; }
  bool is_string() const { return kind_ == Kind::string; }
  bool is_array() const { return kind_ == Kind::array; }
  bool is_object() const { return kind_ == Kind::object; }

  bool boolean() const { return boolean_; }
  double number() const { return number_; }
  int64_t integer() const { return integer_; }
  const std::string& string() const { return string_; }
  const std::vector<Json>& items() const { return items_; }
  const std::vector<std::pair<std::string, Json>>& members() const { return members_; }

  /// The member, or null where it is absent or this is no object.
  const Json& operator[](std::string_view key) const;
  bool has(std::string_view key) const { return !(*this)[key].is_null(); }

 private:
  friend class JsonReader;
  Kind kind_ = Kind::null;
  bool boolean_ = false, integral_ = false;
  double number_ = 0;
  int64_t integer_ = 0;
  std::string string_;
  std::vector<Json> items_;
  std::vector<std::pair<std::string, Json>> members_;
};

/// `text` as a JSON string, quotes included. Control characters are escaped.
std::string json_quote(std::string_view text);

}  // namespace conan
