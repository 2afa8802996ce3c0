#pragma once

#include <limits>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "cerebellum/core/stats.h"
#include "cerebellum/journal/journal.h"

namespace cerebellum {

/// What is known of the damage that one tensor does in one type.
struct Damage {
    std::string type;
    double kld = 0.0;    // nats per token
    double error = 0.0;  // standard error, clustered by window; for fast figures with the spread of the gain in it
    Tier tier = Tier::fast;
    double dof = std::numeric_limits<double>::infinity();  // degrees of freedom of the error
};

/// Relative spread of the fast tier's predictions around full measurements where the local energy lies between two
/// anchors, and what every unit of log energy outside of them adds (docs/fast-tier.md has the residuals,
/// docs/statistics.md the fit).
inline constexpr double gain_spread = 0.2;
inline constexpr double gain_spread_per_distance = 0.09;

/// Where the damage lies with this probability. Figures of the fast tier err by a factor, those of the full tier by a
/// sum; no end is below zero.
Interval damage_interval(const Damage& damage, double level = 0.95);

/// Damage by tensor name and type.
///
/// A type measured in full has that figure, carried over to all windows where it was measured on some of them. Any
/// other has its local energy times the tensor's gain, KLD per unit of local energy, which comes from the tensor's
/// anchors of the same rounding: between two anchors log gain is interpolated in log energy, outside of them the
/// nearest anchor's gain holds. More energy never gives less damage. Throws Error for a tensor that has fast figures
/// but no anchor.
std::map<std::string, std::vector<Damage>> predict_damage(std::span<const Measurement> measurements);

}  // namespace cerebellum
