#include "cerebellum/allocate/few_types.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <optional>
#include <random>
#include <set>

#include "cerebellum/core/error.h"

namespace cerebellum {
namespace {

struct Labelled {
    KnapsackProblem problem;
    std::vector<std::vector<std::size_t>> labels;
};

/// Curves over shared types; some groups lack some types, as rows of odd length do.
Labelled random_problem(std::mt19937_64& random, std::size_t groups, std::size_t n_labels, double missing) {
    Labelled result;
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> uniform;
    std::vector<double> bits;
    for (std::size_t t = 0; t < n_labels; ++t)
        bits.push_back(1.5 + 7.0 * static_cast<double>(t) / static_cast<double>(n_labels) + 0.3 * uniform(random));
    double smallest = 0.0, largest = 0.0;
    for (std::size_t g = 0; g < groups; ++g) {
        auto& options = result.problem.groups.emplace_back();
        auto& labels = result.labels.emplace_back();
        const auto weights = static_cast<double>(1000 + random() % 20000);
        const double level = std::exp(1.5 * normal(random));
        double low = 1e300, high = 0.0;
        for (std::size_t t = 0; t < n_labels; ++t) {
            if (uniform(random) < missing && (t + 1 < n_labels || !options.empty())) continue;
            const double bytes = std::floor(weights * bits[t] / 8.0);
            options.push_back({static_cast<std::uint64_t>(bytes),
                               level * std::exp2(-1.4 * bits[t]) * std::exp(0.3 * normal(random))});
            labels.push_back(t);
            low = std::min(low, bytes);
            high = std::max(high, bytes);
        }
        smallest += low;
        largest += high;
    }
    result.problem.budget_bytes =
        static_cast<std::uint64_t>(smallest + (0.1 + 0.6 * uniform(random)) * (largest - smallest));
    return result;
}

std::size_t distinct(const Labelled& labelled, const KnapsackSolution& solution) {
    std::set<std::size_t> used;
    for (std::size_t g = 0; g < solution.choice.size(); ++g) used.insert(labelled.labels[g][solution.choice[g]]);
    return used.size();
}

/// The best over every set of labels of the size, each solved without the others.
std::optional<double> by_enumeration(const Labelled& labelled, std::size_t n_labels, std::size_t most) {
    std::optional<double> best;
    for (std::uint64_t set = 0; set < (std::uint64_t{1} << n_labels); ++set) {
        if (static_cast<std::size_t>(std::popcount(set)) != most) continue;
        KnapsackProblem reduced;
        reduced.budget_bytes = labelled.problem.budget_bytes;
        bool possible = true;
        for (std::size_t g = 0; g < labelled.problem.groups.size(); ++g) {
            auto& options = reduced.groups.emplace_back();
            for (std::size_t o = 0; o < labelled.problem.groups[g].size(); ++o)
                if ((set >> labelled.labels[g][o] & 1) != 0) options.push_back(labelled.problem.groups[g][o]);
            possible = possible && !options.empty();
        }
        if (!possible) continue;
        try {
            const auto solution = solve_knapsack(reduced);
            if (!best || solution.cost < *best) best = solution.cost;
        } catch (const BudgetTooSmall&) {
        }
    }
    return best;
}

TEST(FewTypes, agrees_with_every_set_of_labels) {
    std::mt19937_64 random(3);
    int impossible = 0;
    for (int round = 0; round < 120; ++round) {
        constexpr std::size_t n_labels = 7;
        const auto labelled = random_problem(random, 3 + random() % 20, n_labels, round % 3 == 0 ? 0.3 : 0.0);
        const std::size_t most = 1 + random() % 5;
        const auto expected = by_enumeration(labelled, n_labels, most);
        if (!expected) {
            EXPECT_THROW(solve_few_labels(labelled.problem, labelled.labels, most), Error) << round;
            ++impossible;
            continue;
        }
        const auto solution = solve_few_labels(labelled.problem, labelled.labels, most);
        EXPECT_TRUE(solution.exact) << round;
        EXPECT_NEAR(solution.cost, *expected, 1e-11 * *expected) << round;
        EXPECT_LE(solution.lower_bound, solution.cost);
        EXPECT_LE(solution.bytes, labelled.problem.budget_bytes);
        EXPECT_LE(distinct(labelled, solution), most);
    }
    EXPECT_GT(impossible, 0);
    EXPECT_LT(impossible, 60);
}

TEST(FewTypes, a_search_cut_short_says_so_and_bounds_what_it_missed) {
    std::mt19937_64 random(4);
    int cut = 0;
    for (int round = 0; round < 20; ++round) {
        const auto labelled = random_problem(random, 40, 12, 0.0);
        const auto full = solve_few_labels(labelled.problem, labelled.labels, 4, {.nodes = 100'000});
        const auto some = solve_few_labels(labelled.problem, labelled.labels, 4, {.nodes = 2});
        ASSERT_TRUE(full.exact);
        EXPECT_GE(some.cost, full.cost * (1.0 - 1e-12));
        EXPECT_LE(some.lower_bound, full.cost * (1.0 + 1e-12));
        EXPECT_LE(distinct(labelled, some), 4U);
        cut += some.exact ? 0 : 1;
    }
    EXPECT_GT(cut, 0);
}

TEST(FewTypesSlow, large_problems) {
    std::mt19937_64 random(5);
    for (const std::size_t most : {3U, 5U, 8U}) {
        const auto labelled = random_problem(random, 1000, 20, 0.0);
        const auto start = std::clock();
        const auto solution = solve_few_labels(labelled.problem, labelled.labels, most);
        const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
        std::printf("1000 x 20, %zu types: %.2f s of processor time, exact %d, gap %.2e of %.2e\n", most, seconds,
                    solution.exact, solution.gap(), solution.cost);
        EXPECT_LE(distinct(labelled, solution), most);
        EXPECT_LT(solution.gap(), 0.05 * solution.cost);
    }
}

}  // namespace
}  // namespace cerebellum
