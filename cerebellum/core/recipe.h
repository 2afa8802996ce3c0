#pragma once

#include <map>
#include <string>

#include "cerebellum/core/encoding.h"

namespace cerebellum {

/// What each tensor is to be stored as in the built file. Tensors that are not named keep their source type.
using TypeMap = std::map<std::string, Encoding>;

}  // namespace cerebellum
