#pragma once

#include <string>
#include <vector>

namespace cerebellum {

/// A table of text for a terminal: first column left-aligned, all others right-aligned, two spaces between columns.
/// As many cells a row as the header has, of any text. Ends with a newline.
std::string format_table(const std::vector<std::string>& header, const std::vector<std::vector<std::string>>& rows);

}  // namespace cerebellum
