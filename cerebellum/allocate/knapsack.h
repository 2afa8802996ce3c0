#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cerebellum/core/error.h"

namespace cerebellum {

/// One way to store a group: what it takes and what it costs. Costs are finite and of any sign
/// (noise makes small ones negative).
struct Option {
    std::uint64_t bytes = 0;
    double cost = 0.0;
};

/// Multiple-choice knapsack: exactly one option of every group, Σ bytes <= budget_bytes, Σ cost as small as possible.
struct KnapsackProblem {
    std::vector<std::vector<Option>> groups;
    std::uint64_t budget_bytes = 0;
};

struct KnapsackSolution {
    /// choice[g] is an index into groups[g].
    std::vector<std::size_t> choice;
    std::uint64_t bytes = 0;
    double cost = 0.0;
    /// No assignment costs less: the Lagrangian bound max over λ of Σ_g min_o (cost + λ·bytes) − λ·budget, the budget
    /// first rounded down to what the options' common divisor can reach; where the search had to stop early, raised
    /// to what it had excluded by then.
    double lower_bound = 0.0;
    /// Proved optimal (up to rounding errors of the cost sum). Otherwise the optimum lies within gap() below.
    bool exact = false;
    /// Partial assignments nearer to each other than this many bytes were merged; 1 where none were.
    std::uint64_t resolution_bytes = 1;

    /// What is left between the cost and the bound, in the unit of the costs; never negative. For an exact solution
    /// it says how much is lost to bytes that come in lumps.
    double gap() const { return cost > lower_bound ? cost - lower_bound : 0.0; }
};

struct KnapsackLimits {
    /// Partial assignments kept by one search; beyond it near ones are merged and the result may not be exact.
    std::size_t labels = 4'000'000;
};

/// Even the smallest option of every group together exceeds the budget.
class BudgetTooSmall : public Error {
  public:
    BudgetTooSmall(std::uint64_t budget_bytes, std::uint64_t smallest_bytes);
    /// Bytes of the smallest assignment there is.
    std::uint64_t smallest_bytes() const { return smallest_bytes_; }

  private:
    std::uint64_t smallest_bytes_;
};

/// Solves the problem; deterministic. Equal costs: the assignment of fewer bytes. Throws BudgetTooSmall, and Error
/// for a group without options or with a cost that is no finite number.
KnapsackSolution solve_knapsack(const KnapsackProblem& problem, const KnapsackLimits& limits = {});

}  // namespace cerebellum
