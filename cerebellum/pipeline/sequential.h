#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "cerebellum/allocate/recipe_problem.h"
#include "cerebellum/pipeline/session.h"

namespace cerebellum {

struct SequentialOptions {
    std::vector<std::uint64_t> budgets_bytes;  // of the recipes that the figures are for
    std::size_t first_windows = 2;             // that everything is measured on
    /// Stop when what exact figures would gain on average, summed over tensors, is at most this share of the recipe's
    /// predicted damage, at every budget.
    double tolerance = 0.005;
};

struct SequentialReport {
    SweepSummary sweep;
    std::size_t rounds = 0;
    double tokens = 0.0;        // that the figures of this design stand on, replayed now or found in the journal
    double fixed_tokens = 0.0;  // of measuring the whole plan on all windows
    std::vector<double> expected_loss;  // by budget, as a share of the predicted damage
};

/// What measuring sequentially stands on, without a model.
struct SequentialDesign {
    std::span<const TensorPlan> plan;  // the fixed design
    std::size_t windows = 0;           // that there are
    double tokens_per_window = 0.0;
    std::function<SweepSummary(std::span<const TensorPlan>)> measure;  // brings the figures up to a plan
    std::function<std::vector<Measurement>()> figures;                 // all that there are
    /// The choices that these figures offer, with the bytes that no choice changes.
    std::function<AllocationProblem(std::span<const Measurement>)> problem;
};

/// Measures a few windows of everything, then more windows of those pairs whose error could still change a recipe at
/// the budgets, twice as many in every round, until it could not by enough to matter (docs/statistics.md). Decisions
/// depend on the figures of the rounds before alone, so that an interrupted run, repeated, comes to the same journal.
SequentialReport measure_sequentially(const SequentialDesign& design, const SequentialOptions& options,
                                      Progress& progress);
SequentialReport measure_sequentially(Session& session, const SequentialOptions& options, Progress& progress);

/// One line for people: rounds, tokens, what is saved, what exact figures could still gain.
std::string describe(const SequentialReport& report);

}  // namespace cerebellum
