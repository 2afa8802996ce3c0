#include "cerebellum/report/heat_map.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <set>
#include <string_view>

namespace cerebellum {

namespace {

constexpr std::string_view ramp = ".:-=+*%#@";
/// Of the 256-colour palette: dark blue to yellow, brighter with every step.
constexpr std::array<int, ramp.size()> colours = {17, 18, 24, 30, 36, 71, 106, 178, 226};
constexpr int first_bright = 4;  // from here on black characters are read better than white ones

struct LogScale {
    double lowest = std::numeric_limits<double>::infinity();
    double highest = 0.0;

    void include(double value) {
        if (!(value > 0.0) || !std::isfinite(value)) return;
        lowest = std::min(lowest, value);
        highest = std::max(highest, value);
    }
    bool empty() const { return highest == 0.0; }
    /// 0 to 1; the middle where there is no range.
    double share(double value) const {
        if (highest <= lowest) return 0.5;
        return std::clamp(std::log(value / lowest) / std::log(highest / lowest), 0.0, 1.0);
    }
    int level(double value) const {
        const auto last = static_cast<double>(ramp.size() - 1);
        return static_cast<int>(std::lround(share(value) * last));
    }
};

std::string painted(int level, int width, bool colour) {
    std::string cell(static_cast<std::size_t>(width), ramp[static_cast<std::size_t>(level)]);
    if (!colour) return cell;
    return fmt::format("\033[48;5;{}m\033[38;5;{}m{}\033[0m", colours[static_cast<std::size_t>(level)],
                       level >= first_bright ? 16 : 231, cell);
}

std::string cell_of(const std::map<int, double>& values, int block, int width, const LogScale& scale, bool colour) {
    const auto found = values.find(block);
    if (found == values.end()) return std::string(static_cast<std::size_t>(width), ' ');
    if (!(found->second > 0.0)) return std::string(static_cast<std::size_t>(width), '0');
    return painted(scale.level(found->second), width, colour);
}

/// The numbers of blocks above their columns, as many as there is room for.
std::string ruler(std::size_t label_width, const std::vector<int>& blocks, int cell) {
    std::string text(label_width, ' ');
    for (std::size_t i = 0; i < blocks.size(); ++i) {
        const auto at = label_width + i * static_cast<std::size_t>(cell);
        const auto number = std::to_string(blocks[i]);
        const bool shown = cell > 1 || blocks[i] % 5 == 0;
        const auto end = label_width + blocks.size() * static_cast<std::size_t>(cell);
        const bool touches = i > 0 && text.size() >= at && text.back() != ' ' && cell < 3;
        if (!shown || touches || text.size() > at || at + number.size() > end) continue;
        text += std::string(at - text.size(), ' ') + number;
    }
    return text;
}

std::string legend(const LogScale& scale, bool colour) {
    std::string text = fmt::format("{:.2e} ", scale.lowest);
    for (int level = 0; level < static_cast<int>(ramp.size()); ++level) text += painted(level, 2, colour);
    return text + fmt::format(" {:.2e}", scale.highest);
}

}  // namespace

std::string draw_heat_map(const HeatMap& map, const TextStyle& style) {
    LogScale scale;
    std::set<int> found;
    std::size_t label_width = 0;
    for (const auto& row : map.rows) {
        label_width = std::max(label_width, row.role.size() + 2);
        for (const auto& [block, value] : row.values) {
            scale.include(value);
            if (block >= 0) found.insert(block);
        }
    }
    if (scale.empty()) return "";
    const std::vector<int> blocks(found.begin(), found.end());
    const auto room = static_cast<std::size_t>(std::max(style.columns - 1 - static_cast<int>(label_width), 10));
    const int cell = blocks.size() * 3 <= room ? 3 : blocks.size() * 2 <= room ? 2 : 1;
    const auto per_panel = room / static_cast<std::size_t>(cell);
    std::string text =
        legend(scale, style.colour) + (style.columns < 70 ? "\n" : "   ") + "0: none   blank: not measured\n";
    for (std::size_t begin = 0; begin < blocks.size(); begin += per_panel) {
        const std::vector<int> panel(
            blocks.begin() + static_cast<std::ptrdiff_t>(begin),
            blocks.begin() + static_cast<std::ptrdiff_t>(std::min(begin + per_panel, blocks.size())));
        text += "\n" + ruler(label_width, panel, cell) + "\n";
        for (const auto& row : map.rows) {
            if (row.values.contains(-1)) continue;
            std::string line = row.role + std::string(label_width - row.role.size(), ' ');
            for (const int block : panel) line += cell_of(row.values, block, cell, scale, style.colour);
            while (line.ends_with(' ')) line.pop_back();
            text += line + "\n";
        }
    }
    std::string outside;
    for (const auto& row : map.rows)
        if (const auto value = row.values.find(-1); value != row.values.end())
            outside += fmt::format("{:<{}}{} {:.2e}\n", row.role, label_width,
                                   cell_of(row.values, -1, cell, scale, style.colour), value->second);
    return outside.empty() ? text : text + "\n" + outside;
}

std::string draw_log_plot(const std::vector<PlotSeries>& series, const std::string& x_label, const std::string& y_label,
                          const TextStyle& style) {
    LogScale heights;
    double left = std::numeric_limits<double>::infinity(), right = -left;
    for (const auto& each : series)
        for (const auto& [x, y] : each.points) {
            if (!(y > 0.0) || !std::isfinite(y) || !std::isfinite(x)) continue;
            heights.include(y);
            left = std::min(left, x);
            right = std::max(right, x);
        }
    if (heights.empty()) return "";
    constexpr int rows = 16, margin = 10;
    const int columns = std::max(style.columns - margin - 2, 20);
    std::vector<std::string> grid(rows, std::string(static_cast<std::size_t>(columns), ' '));
    for (const auto& each : series)
        for (const auto& [x, y] : each.points) {
            if (!(y > 0.0) || !std::isfinite(y) || !std::isfinite(x)) continue;
            const double across = right > left ? (x - left) / (right - left) : 0.5;
            const auto column = static_cast<std::size_t>(std::lround(across * (columns - 1)));
            const auto row = static_cast<std::size_t>(std::lround((1.0 - heights.share(y)) * (rows - 1)));
            grid[row][column] = each.mark;
        }
    std::string text = y_label + "\n";
    for (int row = 0; row < rows; ++row) {
        const double share = 1.0 - static_cast<double>(row) / (rows - 1);
        const bool tick = row % 5 == 0;
        const double value = heights.highest > heights.lowest
                                 ? heights.lowest * std::pow(heights.highest / heights.lowest, share)
                                 : heights.highest;
        auto line =
            (tick ? fmt::format("{:>8.1e} |", value) : std::string(9, ' ') + "|") + grid[static_cast<std::size_t>(row)];
        while (line.ends_with(' ')) line.pop_back();
        text += line + "\n";
    }
    text += std::string(9, ' ') + "+" + std::string(static_cast<std::size_t>(columns), '-') + "\n";
    const auto from = fmt::format("{:.2f}", left), to = fmt::format("{:.2f}", right);
    const auto gap = static_cast<std::size_t>(columns) -
                     std::min(from.size() + to.size() + x_label.size(), static_cast<std::size_t>(columns));
    text +=
        std::string(10, ' ') + from + std::string(gap / 2, ' ') + x_label + std::string(gap - gap / 2, ' ') + to + "\n";
    for (const auto& each : series)
        if (!each.label.empty() && !each.points.empty()) text += fmt::format("  {} {}\n", each.mark, each.label);
    return text;
}

}  // namespace cerebellum
