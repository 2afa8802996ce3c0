#include "cerebellum/allocate/recipe_problem.h"

#include <fmt/format.h>

#include <algorithm>

namespace cerebellum {

Allocation allocate(const AllocationProblem& problem) {
    KnapsackProblem knapsack;
    std::uint64_t smallest = problem.fixed_bytes;
    for (const auto& tensor : problem.tensors) {
        auto& group = knapsack.groups.emplace_back();
        for (const auto& choice : tensor.choices) group.push_back({choice.bytes, choice.kld});
        smallest += std::ranges::min(tensor.choices, {}, &TypeChoice::bytes).bytes;
    }
    if (smallest > problem.budget_bytes)
        throw Error(fmt::format(
            "the budget of {} bytes is too small: the smallest possible file has {} bytes; ask for at least that much",
            problem.budget_bytes, smallest));
    knapsack.budget_bytes = problem.budget_bytes - problem.fixed_bytes;
    const auto solution = solve_knapsack(knapsack);
    Allocation result;
    for (std::size_t i = 0; i < problem.tensors.size(); ++i)
        result.types[problem.tensors[i].name] = problem.tensors[i].choices[solution.choice[i]].type;
    result.file_bytes = problem.fixed_bytes + solution.bytes;
    result.predicted_kld = solution.cost;
    result.lower_bound = solution.lower_bound;
    result.exact = solution.exact;
    return result;
}

}  // namespace cerebellum
