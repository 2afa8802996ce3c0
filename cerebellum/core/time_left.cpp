#include "cerebellum/core/time_left.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace cerebellum {

std::optional<double> TimeLeft::update(double elapsed_s, double share) {
    // After 2 % there is something to go by, or after some seconds where these have come to anything: a first piece of
    // next to no work would promise millions of hours.
    constexpr double enough = 0.02, some = 0.001, some_s = 5.0;
    if (!(share > 0.0) || (share < enough && (elapsed_s < some_s || share < some))) return std::nullopt;
    const double now = elapsed_s * (1.0 - share) / share;
    if (left_s_ && share < 1.0) {
        // What was said counts down; it follows what is seen now within a fiftieth of the whole.
        const double passed = elapsed_s - at_s_;
        constexpr double shortest_s = 0.5, part = 0.02;
        const double memory_s = std::max(shortest_s, part * (elapsed_s + now));
        const double said = *left_s_ - passed;
        left_s_ = std::max(0.0, said + (now - said) * (1.0 - std::exp(-passed / memory_s)));
    } else {
        left_s_ = now;
    }
    at_s_ = elapsed_s;
    return left_s_;
}

std::string format_seconds(double seconds) {
    const long whole = std::lround(std::max(0.0, seconds));
    if (whole < 60) return fmt::format("{} s", whole);
    if (whole < 3600) return fmt::format("{} min {} s", whole / 60, whole % 60);
    return fmt::format("{} h {} min", whole / 3600, whole % 3600 / 60);
}

std::string format_left(double seconds) {
    constexpr double most_days = 30.0, day_s = 86400.0;
    if (!(seconds < most_days * day_s)) return fmt::format("more than {:.0f} days", most_days);
    return format_seconds(seconds);
}

}  // namespace cerebellum
