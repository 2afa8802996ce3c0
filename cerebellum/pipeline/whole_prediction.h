#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "cerebellum/allocate/recipe_problem.h"
#include "cerebellum/build/recipe.h"
#include "cerebellum/journal/journal.h"
#include "cerebellum/pipeline/aim.h"
#include "cerebellum/pipeline/effort.h"
#include "cerebellum/pipeline/session.h"
#include "cerebellum/predict/calibration.h"

namespace cerebellum {

/// A whole mix of the journal against the sum of what its tensors do alone.
struct MeasuredWhole {
    std::string kind;  // "recipe": on the text that is measured on and selection; "contender": on selection alone
    TypeMap types;     // those that differ from the source's
    double sum = 0.0;  // nats per token
    Estimate whole;    // nats per token
};

/// Recipes and contenders that the journal has, in the order in which they were measured; mixes with types that the
/// problem does not know are left out. The problem's figures are KLDs, under the aim's profile.
std::vector<MeasuredWhole> measured_wholes(const AllocationProblem& problem, const Journal& journal,
                                           const Aim& aim = {});

/// What is known of sums and wholes from the recipes that the journal has whole measurements of.
/// The problem's figures are KLDs, under the aim's profile.
Calibration make_calibration(const AllocationProblem& problem, const Journal& journal, const Aim& aim = {});

/// The damage of a whole mix, predicted.
struct WholePrediction {
    double sum = 0.0;     // of the single damages, nats per token
    Estimate calibrated;  // nats per token; error NaN where no whole recipe was measured
};
/// Empty where some type of the mix was not measured.
std::optional<WholePrediction> predict_whole(const AllocationProblem& problem, const Calibration& calibration,
                                             const TypeMap& types);

/// Fills in what is predicted of a recipe: predicted_kld, the sum, and in its provenance calibrated_kld with
/// calibrated_kld_error, where whole recipes were measured.
void note_prediction(const AllocationProblem& problem, const Calibration& calibration, Recipe& recipe);

/// Recipes for these sizes are solved and measured as wholes on the text that single damages were measured on; sizes
/// below the smallest possible file are left out.
std::vector<MixMeasurement> measure_recipes(Session& session, const AllocationProblem& problem,
                                            std::span<const std::uint64_t> budgets, Progress& progress);

/// Budgets around one, itself left out: what its recipe is calibrated by. Most of what a job quantizes as a whole it
/// quantizes for them, so that there are no more of them than the effort is worth.
std::vector<std::uint64_t> neighbouring_budgets(std::uint64_t budget_bytes, Effort effort);
/// Evenly spaced on a logarithmic scale from a little above the smallest possible file to 6.5 bits per weight.
std::vector<std::uint64_t> spread_budgets(const AllocationProblem& problem, std::uint64_t n_weights);

}  // namespace cerebellum
