#pragma once

#include <cstddef>
#include <vector>

#include "cerebellum/allocate/knapsack.h"

namespace cerebellum {

struct FewLabelsLimits {
    /// Sets of labels that are bounded at most. Beyond it the result may not be the best, and says so.
    std::size_t nodes = 3000;
};

/// The knapsack in which every option carries a label (labels[g][o], below 64) and at most `max_labels` distinct labels
/// may be used. Deterministic.
///
/// Branch and bound over sets of labels. For a fixed multiplier the Lagrangian cost of a set is a sum of minima, so
/// that taking several labels away costs at least the sum of what each of them alone costs: a set's bound is its
/// Lagrangian dual plus the cheapest removals. Sets of the right size are solved by solve_knapsack.
///
/// The solution's lower_bound holds for all sets; `exact` says that the best one was proved. Throws BudgetTooSmall and
/// Error as solve_knapsack does, BudgetTooSmall also where only more labels would fit, and Error where no so few labels
/// serve every group.
KnapsackSolution solve_few_labels(const KnapsackProblem& problem, const std::vector<std::vector<std::size_t>>& labels,
                                  std::size_t max_labels, const FewLabelsLimits& limits = {});

}  // namespace cerebellum
