#pragma once

#include "cerebellum/core/json_text.h"

namespace cerebellum {

/// Of one line of a file of questions or tasks.
constexpr JsonLimits question_limits = {.bytes = std::size_t{16} << 20U, .depth = 50};

}  // namespace cerebellum
