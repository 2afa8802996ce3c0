#include "cerebellum/pipeline/undecided.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace cerebellum {

double error_scale(std::span<const Entrant> entrants) {
    double squares = 0.0, n = 0.0;
    for (const auto& entrant : entrants) {
        if (!entrant.predicted || !entrant.measured) continue;
        const auto &predicted = *entrant.predicted, &measured = *entrant.measured;
        const double off = std::log(measured.mean / predicted.mean);
        const double error = std::hypot(predicted.error / predicted.mean, measured.error / measured.mean);
        if (!std::isfinite(off) || !(error > 0.0) || (entrant.at_least && off > 0.0)) continue;
        squares += std::pow(off / error, 2);
        n += 1.0;
    }
    return n > 0.0 ? std::max(1.0, std::sqrt(squares / n)) : 1.0;
}

std::vector<std::size_t> undecided(std::span<const Entrant> entrants) {
    double best = std::numeric_limits<double>::infinity(), upper = best;
    for (const auto& entrant : entrants)
        if (entrant.may_win && entrant.measured && entrant.measured->mean < best) {
            best = entrant.measured->mean;
            upper = best + decisive_errors * entrant.measured->error;
        }
    const double scale = decisive_errors * error_scale(entrants);
    const auto ruled_out = [&](const Entrant& entrant) {
        if (!entrant.predicted) return false;
        const auto& predicted = *entrant.predicted;
        // Any NaN makes this false.
        return predicted.mean > 0.0 && predicted.mean * std::exp(-scale * predicted.error / predicted.mean) > upper;
    };
    std::vector<std::size_t> open;
    for (std::size_t i = 0; i < entrants.size(); ++i)
        if (entrants[i].may_win && !entrants[i].measured && !ruled_out(entrants[i])) open.push_back(i);
    return open;
}

}  // namespace cerebellum
