#include "cerebellum/report/table.h"

#include <fmt/format.h>

#include <algorithm>

namespace cerebellum {

namespace {

/// Columns a UTF-8 text takes on a terminal, for text without wide or combining characters.
std::size_t width_of(const std::string& text) {
    return static_cast<std::size_t>(
        std::ranges::count_if(text, [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

}  // namespace

std::string format_table(const std::vector<std::string>& header, const std::vector<std::vector<std::string>>& rows) {
    std::vector<std::size_t> widths;
    for (std::size_t c = 0; c < header.size(); ++c) {
        widths.push_back(width_of(header[c]));
        for (const auto& row : rows) widths[c] = std::max(widths[c], width_of(row[c]));
    }
    std::string text;
    const auto add = [&](const std::vector<std::string>& row) {
        std::string line;
        for (std::size_t c = 0; c < row.size(); ++c) {
            const std::string padding(widths[c] - width_of(row[c]), ' ');
            line += c == 0 ? row[c] + padding : "  " + padding + row[c];
        }
        while (line.ends_with(' ')) line.pop_back();
        text += line + "\n";
    };
    add(header);
    for (const auto& row : rows) add(row);
    return text;
}

}  // namespace cerebellum
