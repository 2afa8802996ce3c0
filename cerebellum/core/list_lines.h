#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace cerebellum {

/// A line of a list that people write.
struct ListLine {
    int number = 0;    // in the file, from 1
    std::string text;  // without blanks around it; not empty
};

/// The lines of such a list, whatever it lists: blank ones are passed over, "#" at the beginning of a line or behind a
/// blank begins a remark, lines may end as on Windows.
std::vector<ListLine> list_lines(std::string_view content);

}  // namespace cerebellum
