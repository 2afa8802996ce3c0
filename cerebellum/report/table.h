#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace cerebellum {

/// A table of text for a terminal: first column left-aligned, all others right-aligned, two spaces between columns.
/// As many cells a row as the header has, of any text. Ends with a newline.
std::string format_table(const std::vector<std::string>& header, const std::vector<std::vector<std::string>>& rows);

/// "0.1234 ± 0.0005": a figure as it is printed, and its error in the format `spec`. Nothing is said of an error that
/// is not known, such as that of a single window.
std::string with_error(const std::string& figure, double error, std::string_view spec);

}  // namespace cerebellum
