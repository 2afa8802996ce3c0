#pragma once

#include <map>
#include <optional>
#include <string>

#include "cerebellum/gguf/gguf_file.h"

namespace cerebellum {

/// Of every tensor its type, its shape and a hash of the ends of its data: "f16 512x256 0123456789abcdef". What a
/// recipe keeps of the model it was made for, so that another model can be told by its tensors.
std::map<std::string, std::string> tensor_identities(const GgufFile& source);

/// The first tensor, in the order of the file, that is not as `expected` describes it, and how it differs: "blk.0.x is
/// f16 512x256 and not f16 1024x256"; after these, tensors that the file lacks. Empty where all are the same.
std::optional<std::string> first_difference(const GgufFile& source, const std::map<std::string, std::string>& expected);

}  // namespace cerebellum
