#pragma once

#include <string>
#include <string_view>

namespace cerebellum::cli {

/// A message for a person: what is quoted in it may be a megabyte long, so that its middle is left out.
std::string shortened(std::string_view message);

}  // namespace cerebellum::cli
