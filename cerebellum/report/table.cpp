#include "cerebellum/report/table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cerebellum/core/visible_text.h"

namespace cerebellum {

namespace {

/// Columns a UTF-8 text takes on a terminal, for text without wide or combining characters.
std::size_t width_of(const std::string& text) {
    return static_cast<std::size_t>(
        std::ranges::count_if(text, [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

}  // namespace

std::string format_table(const std::vector<std::string>& header, const std::vector<std::vector<std::string>>& rows) {
    std::vector<std::vector<std::string>> cells = {header};
    cells.insert(cells.end(), rows.begin(), rows.end());
    std::vector<std::size_t> widths(header.size());
    for (auto& row : cells)
        for (std::size_t c = 0; c < header.size(); ++c) {
            row[c] = visible(row[c]);
            widths[c] = std::max(widths[c], width_of(row[c]));
        }
    std::string text;
    for (const auto& row : cells) {
        std::string line;
        for (std::size_t c = 0; c < row.size(); ++c) {
            const std::string padding(widths[c] - width_of(row[c]), ' ');
            line += c == 0 ? row[c] + padding : "  " + padding + row[c];
        }
        while (line.ends_with(' ')) line.pop_back();
        text += line + "\n";
    }
    return text;
}

std::string with_error(const std::string& figure, double error, std::string_view spec) {
    if (!std::isfinite(error)) return figure;
    return figure + " ± " + fmt::format(fmt::runtime(spec), error);
}

}  // namespace cerebellum
