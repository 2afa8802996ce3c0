#pragma once

#include <cstddef>
#include <ranges>
#include <string>

namespace cerebellum {

/// "blk.0.attn_v.weight, blk.1.attn_v.weight, output.weight and 26 more": the first three names of a list.
template <std::ranges::sized_range Names>
std::string first_few(const Names& names) {
    constexpr std::size_t shown = 3;
    const auto count = static_cast<std::size_t>(std::ranges::size(names));
    std::string text;
    std::size_t i = 0;
    for (const auto& name : names) {
        if (i == shown) break;
        if (i++ > 0) text += ", ";
        text += name;
    }
    return count > shown ? text + " and " + std::to_string(count - shown) + " more" : text;
}

}  // namespace cerebellum
