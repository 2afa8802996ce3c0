#include "cerebellum/core/size.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>

#include "cerebellum/core/error.h"

namespace cerebellum {

std::uint64_t SizeGoal::bytes(std::uint64_t n_weights) const {
    const double amount = unit == Unit::bytes ? value : value * static_cast<double>(n_weights) / 8.0;
    return static_cast<std::uint64_t>(std::floor(amount));
}

SizeGoal parse_size(std::string_view text) {
    const auto fail = [&]() -> SizeGoal {
        throw UsageError(
            fmt::format("'{}' is not a size: write 12GB, 11.5GiB, 800MB, 4.25bpw or a number of bytes", text));
    };
    double number = 0.0;
    const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (status != std::errc{} || !std::isfinite(number) || number <= 0.0) return fail();
    std::string unit(end, text.data() + text.size());
    std::erase_if(unit, [](unsigned char c) { return std::isspace(c); });
    std::ranges::transform(unit, unit.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    if (unit == "bpw") return {SizeGoal::Unit::bits_per_weight, number};
    struct Scale {
        std::string_view name;
        double factor;
    };
    static constexpr std::array scales = {
        Scale{"", 1.0},       Scale{"b", 1.0},      Scale{"kb", 1e3},     Scale{"mb", 1e6}, Scale{"gb", 1e9},
        Scale{"tb", 1e12},    Scale{"k", 1e3},      Scale{"m", 1e6},      Scale{"g", 1e9},  Scale{"kib", 0x1p10},
        Scale{"mib", 0x1p20}, Scale{"gib", 0x1p30}, Scale{"tib", 0x1p40},
    };
    const auto* scale = std::ranges::find(scales, std::string_view(unit), &Scale::name);
    if (scale == scales.end() || number * scale->factor < 1.0 || number * scale->factor > 1e18) return fail();
    return {SizeGoal::Unit::bytes, number * scale->factor};
}

std::string format_bytes(std::uint64_t bytes) {
    static constexpr std::array<std::string_view, 5> units = {"B", "kB", "MB", "GB", "TB"};
    auto value = static_cast<double>(bytes);
    std::size_t unit = 0;
    while (value >= 999.5 && unit + 1 < units.size()) value /= 1000.0, ++unit;
    if (unit == 0) return fmt::format("{} B", bytes);
    return fmt::format("{:.{}f} {}", value, value < 9.995 ? 2 : value < 99.95 ? 1 : 0, units[unit]);
}

}  // namespace cerebellum
