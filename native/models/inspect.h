// What a model directory holds, without loading its weights.
#pragma once
#include <string>

namespace conan {

/// JSON: {model_type, prefix, config, parameters, bytes, dtypes, tensors: [{name, dtype, shape}], unused, problems}.
/// A directory that cannot be read at all is an Error; everything else that is wrong with it is listed in `problems`.
std::string inspect_directory(const std::string& directory);

}  // namespace conan
