#include "cerebellum/quantize/lane_codebook.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <stdexcept>

namespace cerebellum::lanes {

namespace {

constexpr int block_weights = 256;

constexpr CodebookLayout layouts[] = {
    {GGML_TYPE_IQ2_XXS, 8, 256, 2, 0, 2}, {GGML_TYPE_IQ2_XS, 8, 512, 2, 3, 2}, {GGML_TYPE_IQ2_S, 8, 1024, 2, 66, 1},
    {GGML_TYPE_IQ3_XXS, 4, 256, 2, 0, 2}, {GGML_TYPE_IQ3_S, 4, 512, 2, 66, 3}, {GGML_TYPE_IQ1_S, 8, 2048, 2, 34, 3},
};

/// What a block that is zero but for the index of its first part, and has a scale of 1, is read as.
std::array<float, block_weights> read_point(const CodebookLayout& layout, int index) {
    std::vector<std::byte> block(ggml_type_size(layout.type));
    const ggml_fp16_t one = ggml_fp32_to_fp16(1.0f);
    std::memcpy(block.data(), &one, sizeof one);
    block.at(static_cast<std::size_t>(layout.low)) = static_cast<std::byte>(index & 255);
    if (layout.high != 0) block.at(static_cast<std::size_t>(layout.high)) = static_cast<std::byte>(index >> 8);
    std::array<float, block_weights> weights;
    ggml_get_type_traits(layout.type)->to_float(block.data(), weights.data(), block_weights);
    return weights;
}

/// The codebook as the type's reader has it: levels are the ranks of its values.
std::vector<std::uint16_t> read_points(const CodebookLayout& layout, int levels, int bits) {
    std::vector<float> values;
    for (int index = 0; index < layout.n_points; ++index) {
        const auto weights = read_point(layout, index);
        values.insert(values.end(), weights.begin(), weights.begin() + layout.part);
    }
    auto ranks = values;
    std::ranges::sort(ranks);
    ranks.erase(std::ranges::unique(ranks).begin(), ranks.end());
    if (std::ssize(ranks) != levels) throw std::runtime_error("a codebook has another number of levels");
    std::vector<std::uint16_t> points;
    for (auto value = values.begin(); value != values.end(); value += layout.part) {
        std::ptrdiff_t point = 0;
        for (int i = layout.part - 1; i >= 0; --i)
            point = point << bits | (std::ranges::lower_bound(ranks, value[i]) - ranks.begin());
        points.push_back(static_cast<std::uint16_t>(point));
    }
    return points;
}

const CodebookLayout& layout_of(ggml_type type) {
    return *std::ranges::find(layouts, type, &CodebookLayout::type);
}

}  // namespace

std::span<const CodebookLayout> codebook_layouts() {
    return layouts;
}

Codebook::Codebook(ggml_type type, int at_once) {
    const auto& layout = layout_of(type);
    levels = layout.part == 8 ? 3 : 8;
    bits = layout.part == 8 ? 2 : 3;
    points = read_points(layout, levels, bits);
    index.resize(std::size_t{1} << (bits * layout.part));
    for (std::size_t i = 0; i < points.size(); ++i) index[points[i]] = static_cast<std::uint16_t>(i);
    list_neighbours(layout.part, layout.n_distances, at_once);
}

/// ggml's lists: the points at the n_distances least distances, the nearest first, of equally near ones that of the
/// smallest index.
void Codebook::list_neighbours(int part, int n_distances, int at_once) {
    const auto n_places = static_cast<int>(std::lround(std::pow(levels, part)));
    all_places.reserve(static_cast<std::size_t>(n_places));
    std::array<std::vector<std::uint16_t>, 8 * 7 * 7 + 1> at_distance;  // of the most levels and weights
    for (int key = 0; key < n_places; ++key) {
        int digits[8], rest = key;
        for (int i = 0; i < part; ++i, rest /= levels) digits[i] = rest % levels;
        for (const auto point : points) {
            int distance = 0;
            for (int i = 0; i < part; ++i) {
                const int difference = (point >> (bits * i) & ((1 << bits) - 1)) - digits[i];
                distance += difference * difference;
            }
            at_distance[static_cast<std::size_t>(distance)].push_back(point);
        }
        const auto first = neighbours.size();
        const bool is_point = !at_distance[0].empty();
        int wanted = is_point ? 0 : n_distances;
        for (auto& near : at_distance) {
            if (!near.empty() && wanted-- > 0) neighbours.insert(neighbours.end(), near.begin(), near.end());
            near.clear();
        }
        while ((neighbours.size() - first) % static_cast<std::size_t>(at_once) != 0)
            neighbours.push_back(neighbours.back());
        all_places.push_back(
            {static_cast<std::uint32_t>(first), static_cast<std::uint16_t>(neighbours.size() - first)});
    }
}

}  // namespace cerebellum::lanes
