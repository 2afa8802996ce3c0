#pragma once

#include <span>
#include <string>
#include <vector>

#include "cerebellum/core/encoding.h"
#include "cerebellum/core/stats.h"
#include "cerebellum/evaluate/figures.h"
#include "cerebellum/journal/journal.h"
#include "cerebellum/predict/objective.h"

namespace cerebellum {

/// What an allocation is for: which damage counts, on which domains of the text, and in which roundings.
struct Aim {
    Objective objective = Objective::kld;
    std::string profile;  // as parse_profile takes it
    RoundingChoice rounding = RoundingChoice::automatic;
    /// Only these may be chosen, whatever else a journal has figures of; empty: all. The source's own always may.
    std::vector<ggml_type> types = {};
};

/// Labels of the windows that single damages and whole mixes were measured on; empty where the text is not labelled.
std::vector<std::string> measured_domains(const Journal& journal);

/// The journal's measurements and its whole mixes, windows counted as the aim's profile wants it. Throws UsageError
/// where the profile does not suit the journal's text.
std::vector<Measurement> weighed_measurements(const Journal& journal, const Aim& aim);
std::vector<MixMeasurement> weighed_mixes(const Journal& journal, const Aim& aim);

/// The same for scores of a part of the text whose windows have these labels.
std::vector<WindowScore> weigh(std::vector<WindowScore> scores, const Aim& aim,
                               const std::vector<std::string>& domains);

/// Damage as an objective has it, per token: KLD, ΔNLL, or the share of positions whose likeliest token is another.
Estimate mean_cost(std::span<const WindowScore> scores, Objective objective);
/// That of `a` minus that of `b` on the same windows, paired.
Estimate cost_difference(std::span<const WindowScore> a, std::span<const WindowScore> b, Objective objective);

}  // namespace cerebellum
