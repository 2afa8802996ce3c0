#pragma once

#include <algorithm>
#include <map>
#include <string>

#include "cerebellum/core/encoding.h"

namespace cerebellum {

/// What each tensor is to be stored as in the built file. Tensors that are not named keep their source type.
using TypeMap = std::map<std::string, Encoding>;

/// Whether any of them is rounded with feedback: that takes the second moments of the inputs.
inline bool needs_moments(const TypeMap& types) {
    return std::ranges::any_of(types, [](const auto& entry) { return entry.second.rounding == Rounding::feedback; });
}

}  // namespace cerebellum
