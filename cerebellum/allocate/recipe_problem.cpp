#include "cerebellum/allocate/recipe_problem.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <optional>

#include "cerebellum/allocate/few_types.h"
#include "cerebellum/allocate/frontier.h"

namespace cerebellum {

namespace {

AllocationGroup couple(const AllocationProblem& problem, const std::vector<std::size_t>& members) {
    AllocationGroup group{members, {}};
    for (const auto& first : problem.tensors.at(members.front()).choices) {
        TypeChoice sum{first.type, 0, 0.0};
        const bool common = std::ranges::all_of(members, [&](std::size_t index) {
            const auto& choices = problem.tensors.at(index).choices;
            const auto same = std::ranges::find(choices, first.type, &TypeChoice::type);
            if (same == choices.end()) return false;
            sum.bytes += same->bytes;
            sum.cost += same->cost;
            return true;
        });
        if (common) group.choices.push_back(sum);
    }
    return group;
}

KnapsackProblem knapsack_of(const std::vector<AllocationGroup>& groups) {
    KnapsackProblem knapsack;
    for (const auto& group : groups) {
        auto& options = knapsack.groups.emplace_back();
        for (const auto& choice : group.choices) options.push_back({choice.bytes, choice.cost});
    }
    return knapsack;
}

KnapsackSolution solve(const std::vector<AllocationGroup>& groups, std::uint64_t budget_bytes, std::size_t max_types) {
    auto knapsack = knapsack_of(groups);
    knapsack.budget_bytes = budget_bytes;
    if (max_types == 0) return solve_knapsack(knapsack);
    std::vector<std::vector<std::size_t>> labels;
    for (const auto& group : groups) {
        auto& of_group = labels.emplace_back();
        for (const auto& choice : group.choices) of_group.push_back(static_cast<std::size_t>(choice.type.type));
    }
    return solve_few_labels(knapsack, labels, max_types);
}

/// What all differences between sizes of files are multiples of.
std::uint64_t size_step(const std::vector<AllocationGroup>& groups) {
    std::uint64_t step = 0;
    for (const auto& group : groups)
        for (const auto& choice : group.choices) {
            const auto first = group.choices.front().bytes;
            step = std::gcd(step, choice.bytes > first ? choice.bytes - first : first - choice.bytes);
        }
    return std::max<std::uint64_t>(step, 1);
}

Allocation allocation_of(const AllocationProblem& problem, const std::vector<AllocationGroup>& groups,
                         const KnapsackSolution& solution) {
    Allocation result;
    for (std::size_t g = 0; g < groups.size(); ++g)
        for (const auto index : groups[g].tensors)
            result.types[problem.tensors[index].name] = groups[g].choices[solution.choice[g]].type;
    result.file_bytes = problem.fixed_bytes + solution.bytes;
    result.cost = solution.cost;
    result.lower_bound = solution.lower_bound;
    result.exact = solution.exact;
    return result;
}

}  // namespace

std::vector<AllocationGroup> groups_of(const AllocationProblem& problem) {
    std::vector<AllocationGroup> groups;
    std::vector<bool> placed(problem.tensors.size(), false);
    for (const auto& members : problem.coupled) {
        if (members.empty()) continue;
        for (const auto index : members) placed.at(index) = true;
        groups.push_back(couple(problem, members));
        if (groups.back().choices.empty())
            throw Error(
                fmt::format("{} and what it is coupled with have no type in common; couple less or allow more "
                            "types",
                            problem.tensors[members.front()].name));
    }
    for (std::size_t i = 0; i < problem.tensors.size(); ++i)
        if (!placed[i]) groups.push_back({{i}, problem.tensors[i].choices});
    return groups;
}

std::uint64_t smallest_file_bytes(const AllocationProblem& problem) {
    std::uint64_t bytes = problem.fixed_bytes;
    for (const auto& group : groups_of(problem)) bytes += std::ranges::min(group.choices, {}, &TypeChoice::bytes).bytes;
    return bytes;
}

Allocation allocate(const AllocationProblem& problem, std::uint64_t budget_bytes) {
    const auto groups = groups_of(problem);
    if (const auto smallest = smallest_file_bytes(problem); smallest > budget_bytes)
        throw Error(fmt::format(
            "the budget of {} bytes is too small: the smallest possible file has {} bytes; ask for at least that much",
            budget_bytes, smallest));
    try {
        return allocation_of(problem, groups, solve(groups, budget_bytes - problem.fixed_bytes, problem.max_types));
    } catch (const BudgetTooSmall& error) {
        throw Error(fmt::format(
            "the budget of {} bytes is too small for {} types: the smallest file with so few has {} bytes; ask for at "
            "least that much or allow more types",
            budget_bytes, problem.max_types, problem.fixed_bytes + error.smallest_bytes()));
    }
}

Allocation allocate_under(const AllocationProblem& problem, double max_cost) {
    const auto groups = groups_of(problem);
    std::uint64_t most = 0;
    for (const auto& group : groups) most += std::ranges::max(group.choices, {}, &TypeChoice::bytes).bytes;
    auto best = solve(groups, most, problem.max_types);
    if (best.cost > max_cost)
        throw Error(
            fmt::format("no choice of types is predicted to stay under a KLD of {:.6g}: the least is {:.6g}, at {} "
                        "bytes; allow more damage or more types",
                        max_cost, best.cost, problem.fixed_bytes + best.bytes));
    // Between the relaxation's size, which nothing can undercut, and the next size that it can really have.
    auto unconstrained = problem;
    unconstrained.max_types = 0;
    const auto bracket = bracket_under(solve_frontier(unconstrained), max_cost);
    std::uint64_t below = bracket.not_less_than - problem.fixed_bytes;
    below -= std::min<std::uint64_t>(below, 1);
    const std::uint64_t step = size_step(groups);
    std::uint64_t resolution = step;
    if (problem.max_types == 0)
        best = solve(groups, bracket.enough - problem.fixed_bytes, 0);
    else
        resolution = std::max(step, most / 10'000);
    bool exact = best.exact;
    // Nothing of at most `below` bytes is good enough. Attainable sizes are best.bytes and whole steps less.
    while (best.bytes >= below + resolution + 1) {
        const std::uint64_t middle = below + (best.bytes - below) / 2;
        std::optional<KnapsackSolution> solution;
        try {
            solution = solve(groups, middle, problem.max_types);
        } catch (const BudgetTooSmall&) {
        }
        if (solution && solution->cost <= max_cost) {
            best = std::move(*solution);
        } else {
            exact = exact && (!solution || solution->exact || solution->lower_bound > max_cost);
            below = middle;
        }
    }
    best.exact = exact;
    auto result = allocation_of(problem, groups, best);
    result.lower_bound = std::min(result.lower_bound, result.cost);
    return result;
}

}  // namespace cerebellum
