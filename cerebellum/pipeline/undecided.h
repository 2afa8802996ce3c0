#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "cerebellum/core/stats.h"

namespace cerebellum {

/// A whole mix in a comparison, as far as it is known. Damages are in nats per token.
struct Entrant {
    /// With all that is known of how far the prediction may be off; an error of NaN: nothing is known of that.
    std::optional<Estimate> predicted;
    /// The prediction leaves out what is not known of the mix: it does at least this much damage.
    bool at_least = false;
    std::optional<Estimate> measured;
    bool may_win = true;  // it may be delivered
};

/// How many standard errors a prediction is believed to be off at most, and a measurement likewise.
inline constexpr double decisive_errors = 3.0;

/// How many times larger the errors of these predictions are than they say, at least 1: the root mean square of
/// log(measured / predicted) in units of its error, the relative errors of both, over the entrants of which both are
/// known (Birge, Phys. Rev. 40 (1932) 207). A lower bound counts where the measurement lies below it.
double error_scale(std::span<const Entrant> entrants);

/// The entrants, as indices, that have to be measured before it is known which of those that may win does least damage:
/// those that may, that are not measured, and whose prediction, lower by decisive_errors standard errors (as factors:
/// predicted · exp(−3 s e / predicted), s being the error_scale), does not lie above the least measurement of one that
/// may win, higher by as many. All that are not measured, where there is no such measurement, or no error of it is
/// known. Measuring them may change the answer; ask again until there are none.
std::vector<std::size_t> undecided(std::span<const Entrant> entrants);

}  // namespace cerebellum
