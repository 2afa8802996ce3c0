#pragma once

#include <ggml.h>

#include <map>
#include <string>

namespace cerebellum {

/// Which type each tensor is to have in the built file. Tensors that are not named keep their source type.
using TypeMap = std::map<std::string, ggml_type>;

}  // namespace cerebellum
