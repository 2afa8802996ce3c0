#include "cerebellum/report/heat_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <sstream>

namespace cerebellum {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::vector<std::string> lines_of(const std::string& text) {
    std::vector<std::string> lines;
    std::istringstream stream(text);
    for (std::string line; std::getline(stream, line);) lines.push_back(line);
    return lines;
}

std::string line_of(const std::string& text, const std::string& beginning) {
    for (const auto& line : lines_of(text))
        if (line.starts_with(beginning)) return line;
    return "no line " + beginning;
}

HeatMap some_map(int blocks) {
    HeatMap map;
    map.rows = {{"attn_q", {}}, {"ffn_down", {}}, {"token_embd", {{-1, 0.5}}}};
    for (int b = 0; b < blocks; ++b) {
        map.rows[0].values[b] = 1e-5;
        map.rows[1].values[b] = 1e-2;
    }
    return map;
}

TEST(HeatMap, characters_rise_with_damage) {
    HeatMap map;
    map.rows = {{"a", {{0, 1e-6}, {1, 1e-4}, {2, 1e-2}, {3, 0.0}}}};
    EXPECT_EQ(line_of(draw_heat_map(map, {80, false}), "a "), "a  ...+++@@@000");
}

TEST(HeatMap, what_was_not_measured_is_blank) {
    HeatMap map;
    map.rows = {{"a", {{0, 1e-6}, {2, 1e-2}}}, {"b", {{1, 1e-4}}}};
    const auto text = draw_heat_map(map, {80, false});
    EXPECT_EQ(line_of(text, "a "), "a  ...   @@@");
    EXPECT_EQ(line_of(text, "b "), "b     +++");
}

TEST(HeatMap, no_line_is_wider_than_the_terminal) {
    for (const int columns : {40, 80, 132})
        for (const int blocks : {1, 4, 30, 64, 200})
            for (const auto& line : lines_of(draw_heat_map(some_map(blocks), {columns, false})))
                EXPECT_LE(line.size(), static_cast<std::size_t>(columns)) << line;
}

TEST(HeatMap, every_block_is_there_once_when_the_map_is_cut) {
    std::size_t cells = 0;
    for (const auto& line : lines_of(draw_heat_map(some_map(200), {80, false})))
        if (line.starts_with("attn_q")) cells += static_cast<std::size_t>(std::ranges::count(line, '.'));
    EXPECT_EQ(cells, 200U);
}

TEST(HeatMap, tensors_outside_of_the_blocks_are_in_figures) {
    EXPECT_THAT(line_of(draw_heat_map(some_map(4), {80, false}), "token_embd"), HasSubstr("@@@ 5.00e-01"));
}

TEST(HeatMap, colours_only_repeat_what_the_characters_say) {
    auto coloured = draw_heat_map(some_map(4), {80, true});
    EXPECT_THAT(coloured, HasSubstr("\033["));
    for (std::size_t at; (at = coloured.find('\033')) != std::string::npos;)
        coloured.erase(at, coloured.find('m', at) - at + 1);
    EXPECT_EQ(coloured, draw_heat_map(some_map(4), {80, false}));
}

TEST(HeatMap, nothing_to_draw) {
    HeatMap map;
    EXPECT_EQ(draw_heat_map(map, {}), "");
    map.rows = {{"a", {{0, 0.0}}}, {"b", {{0, NAN}}}};
    EXPECT_EQ(draw_heat_map(map, {}), "");
}

TEST(LogPlot, points_lie_where_they_belong) {
    const PlotSeries series{'*', "ours", {{2.0, 1.0}, {4.0, 1e-2}, {6.0, 1e-4}}};
    const auto lines = lines_of(draw_log_plot({series}, "bits", "KLD", {80, false}));
    EXPECT_EQ(lines[1].find('*'), 10U);                    // the greatest, at the left
    EXPECT_EQ(lines[16].find('*'), lines[16].size() - 1);  // the least, at the right
    EXPECT_EQ(lines[16].size(), 78U);
    EXPECT_THAT(lines[1], HasSubstr("1.0e+00"));
    EXPECT_THAT(lines[16], HasSubstr("1.0e-04"));
    EXPECT_THAT(lines.back(), HasSubstr("* ours"));
    for (const auto& line : lines) EXPECT_LE(line.size(), 80U);
}

TEST(LogPlot, damage_of_zero_has_no_place_on_a_logarithmic_axis) {
    const auto with = draw_log_plot({{'*', "", {{2.0, 1.0}, {4.0, 1e-2}, {16.0, 0.0}}}}, "x", "y", {80, false});
    EXPECT_EQ(with, draw_log_plot({{'*', "", {{2.0, 1.0}, {4.0, 1e-2}}}}, "x", "y", {80, false}));
    EXPECT_EQ(draw_log_plot({{'*', "", {{16.0, 0.0}}}}, "x", "y", {80, false}), "");
}

TEST(LogPlot, one_point) {
    EXPECT_THAT(draw_log_plot({{'*', "", {{2.0, 1.0}}}}, "x", "y", {80, false}), HasSubstr("*"));
}

TEST(LogPlot, later_series_are_drawn_over_earlier_ones) {
    const auto text = draw_log_plot({{'*', "", {{2.0, 1.0}}}, {'o', "", {{2.0, 1.0}}}}, "x", "y", {80, false});
    EXPECT_THAT(text, Not(HasSubstr("*")));
    EXPECT_THAT(text, HasSubstr("o"));
}

}  // namespace
}  // namespace cerebellum
