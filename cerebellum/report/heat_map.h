#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

namespace cerebellum {

/// How a text may be drawn.
struct TextStyle {
    int columns = 80;     // of the terminal; at least 40
    bool colour = false;  // 256-colour escape sequences; every cell says by its character what it says by its colour
};

/// Damage by role (rows) and block (columns), for a terminal.
struct HeatMap {
    struct Row {
        std::string role;
        std::map<int, double> values;  // by block; -1: the tensor is in no block
    };
    std::vector<Row> rows;
};

/// Characters of rising damage, on a logarithmic scale from the least to the greatest positive value; "0" is none at
/// all, a blank is not measured. Maps wider than the terminal are cut into several, one below the other. Rows of
/// tensors outside of the blocks come last, with their values in figures.
std::string draw_heat_map(const HeatMap& map, const TextStyle& style);

/// Points of one series, drawn with one character.
struct PlotSeries {
    char mark = '*';
    std::string label;
    std::vector<std::pair<double, double>> points;  // x, y; y must be positive to be drawn
};

/// A scatter plot with a logarithmic y axis. Later series are drawn over earlier ones. Empty where there is nothing to
/// draw.
std::string draw_log_plot(const std::vector<PlotSeries>& series, const std::string& x_label, const std::string& y_label,
                          const TextStyle& style);

}  // namespace cerebellum
