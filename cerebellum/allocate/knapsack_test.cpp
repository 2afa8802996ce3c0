#include "cerebellum/allocate/knapsack.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <limits>
#include <numeric>
#include <optional>
#include <random>

namespace cerebellum {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(NDEBUG)
constexpr bool timing_counts = false;
#else
constexpr bool timing_counts = true;
#endif

std::uint64_t smallest_bytes(const KnapsackProblem& problem) {
    std::uint64_t total = 0;
    for (const auto& group : problem.groups)
        total +=
            std::min_element(group.begin(), group.end(), [](auto& a, auto& b) { return a.bytes < b.bytes; })->bytes;
    return total;
}

std::uint64_t largest_bytes(const KnapsackProblem& problem) {
    std::uint64_t total = 0;
    for (const auto& group : problem.groups)
        total +=
            std::max_element(group.begin(), group.end(), [](auto& a, auto& b) { return a.bytes < b.bytes; })->bytes;
    return total;
}

/// Every assignment there is: least cost, then fewest bytes.
std::optional<Option> brute_force(const KnapsackProblem& problem) {
    std::optional<Option> best;
    std::vector<std::size_t> choice(problem.groups.size(), 0);
    while (true) {
        Option sum;
        for (std::size_t g = 0; g < choice.size(); ++g) {
            sum.bytes += problem.groups[g][choice[g]].bytes;
            sum.cost += problem.groups[g][choice[g]].cost;
        }
        if (sum.bytes <= problem.budget_bytes &&
            (!best || sum.cost < best->cost || (sum.cost == best->cost && sum.bytes < best->bytes)))
            best = sum;
        std::size_t g = 0;
        while (g < choice.size() && ++choice[g] == problem.groups[g].size()) choice[g++] = 0;
        if (g == choice.size()) return best;
    }
}

/// Textbook dynamic programme over every number of bytes.
double table_optimum(const KnapsackProblem& problem) {
    std::vector<double> least(problem.budget_bytes + 1, 0.0);
    for (const auto& group : problem.groups) {
        std::vector<double> next(least.size(), std::numeric_limits<double>::infinity());
        for (const Option& option : group)
            for (std::size_t b = option.bytes; b < least.size(); ++b)
                next[b] = std::min(next[b], least[b - option.bytes] + option.cost);
        least = std::move(next);
    }
    return least.back();
}

void expect_consistent(const KnapsackProblem& problem, const KnapsackSolution& solution) {
    ASSERT_EQ(solution.choice.size(), problem.groups.size());
    std::uint64_t bytes = 0;
    double cost = 0.0, scale = 0.0;
    for (std::size_t g = 0; g < problem.groups.size(); ++g) {
        ASSERT_LT(solution.choice[g], problem.groups[g].size());
        const Option& option = problem.groups[g][solution.choice[g]];
        bytes += option.bytes;
        cost += option.cost;
        scale += std::abs(option.cost);
    }
    EXPECT_EQ(solution.bytes, bytes);
    EXPECT_LE(solution.bytes, problem.budget_bytes);
    EXPECT_NEAR(solution.cost, cost, 1e-12 * scale);
    EXPECT_LE(solution.lower_bound, solution.cost);
    EXPECT_EQ(solution.gap(), solution.cost - solution.lower_bound);
}

/// Falling, roughly convex, noisy cost over size, as measured curves are.
std::vector<Option> noisy_curve(std::mt19937_64& random, const std::vector<std::uint64_t>& sizes, double weights,
                                double noise) {
    std::normal_distribution<double> normal;
    const double level = std::exp(1.5 * normal(random));
    const double steepness = 1.3 + 0.2 * normal(random);
    std::vector<Option> group;
    for (const std::uint64_t bytes : sizes) {
        const double bits = 8.0 * static_cast<double>(bytes) / weights;
        group.push_back({bytes, 1e-2 * level * std::exp2(-steepness * bits) * std::exp(noise * normal(random))});
    }
    return group;
}

/// Seven weight shapes in each layer, the sizes of ggml's types, all multiples of a row's block bytes.
KnapsackProblem transformer(std::uint64_t seed, std::size_t layers, double bits_per_weight,
                            std::uint64_t odd_bytes = 0) {
    constexpr double block_bytes[] = {66, 74, 82, 84, 98, 110, 136, 144, 144, 176, 176, 210, 272, 512};
    constexpr std::uint64_t shapes[][2] = {{576, 576},  {576, 192},  {576, 192}, {576, 576},
                                           {576, 1536}, {576, 1536}, {1536, 576}};
    std::mt19937_64 random(seed);
    KnapsackProblem problem;
    double total = 0.0;
    for (std::size_t layer = 0; layer < layers; ++layer)
        for (const auto& shape : shapes) {
            const std::uint64_t weights = shape[0] * shape[1];
            std::vector<std::uint64_t> sizes;
            for (const double block : block_bytes)
                sizes.push_back(weights / 256 * static_cast<std::uint64_t>(block) +
                                (odd_bytes ? random() % odd_bytes : 0));
            problem.groups.push_back(noisy_curve(random, sizes, static_cast<double>(weights), 0.2));
            total += static_cast<double>(weights);
        }
    problem.budget_bytes = static_cast<std::uint64_t>(total * bits_per_weight / 8.0);
    return problem;
}

KnapsackProblem random_curves(std::uint64_t seed, std::size_t groups, std::size_t options, double fill) {
    std::mt19937_64 random(seed);
    KnapsackProblem problem;
    for (std::size_t g = 0; g < groups; ++g) {
        const double weights = 1e5 * static_cast<double>(1 + random() % 300);
        std::vector<std::uint64_t> sizes;
        for (std::size_t o = 0; o < options; ++o)
            sizes.push_back(static_cast<std::uint64_t>(
                                weights * (0.2 + 0.9 * static_cast<double>(o) / static_cast<double>(options))) +
                            random() % 1000);
        problem.groups.push_back(noisy_curve(random, sizes, weights, 0.3));
    }
    const auto low = static_cast<double>(smallest_bytes(problem)), high = static_cast<double>(largest_bytes(problem));
    problem.budget_bytes = static_cast<std::uint64_t>(low + fill * (high - low));
    return problem;
}

double timed(const KnapsackProblem& problem, KnapsackSolution& solution) {
    const auto start = std::chrono::steady_clock::now();
    solution = solve_knapsack(problem);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

TEST(Knapsack, agrees_with_every_assignment_of_small_problems) {
    EXPECT_TRUE(rc::check("brute force", [] {
        KnapsackProblem problem;
        const auto group_count = *rc::gen::inRange<std::size_t>(1, 7);
        // Few distinct values make ties and duplicates common; many make them rare.
        const auto most_bytes = *rc::gen::element<std::uint64_t>(3, 50, 1'000'000);
        const int most_cost = *rc::gen::element(3, 100, 1'000'000);
        const double unit = *rc::gen::element(1.0, 0.25, 1e-9);
        for (std::size_t g = 0; g < group_count; ++g) {
            auto& group = problem.groups.emplace_back();
            const auto option_count = *rc::gen::inRange<std::size_t>(1, 6);
            for (std::size_t o = 0; o < option_count; ++o)
                group.push_back(
                    {*rc::gen::inRange<std::uint64_t>(0, most_bytes), unit * *rc::gen::inRange(-2, most_cost)});
        }
        const std::uint64_t low = smallest_bytes(problem);
        problem.budget_bytes = *rc::gen::weightedOneOf<std::uint64_t>(
            {{1, rc::gen::inRange<std::uint64_t>(0, low + 1)},
             {9, rc::gen::inRange<std::uint64_t>(low, largest_bytes(problem) + 2)}});
        const auto best = brute_force(problem);
        RC_CLASSIFY(!best);
        if (!best) {
            try {
                solve_knapsack(problem);
                RC_FAIL("an impossible budget was accepted");
            } catch (const BudgetTooSmall& error) {
                RC_ASSERT(error.smallest_bytes() == smallest_bytes(problem));
            }
            return;
        }
        const auto solution = solve_knapsack(problem);
        expect_consistent(problem, solution);
        RC_ASSERT(solution.exact);
        RC_ASSERT(std::abs(solution.cost - best->cost) <= 1e-12 * (std::abs(best->cost) + unit));
        if (unit == 1.0) RC_ASSERT(solution.bytes == best->bytes);  // sums are exact, so ties are real
        RC_ASSERT(solution.lower_bound <= best->cost + 1e-12 * std::abs(best->cost));
    }));
}

TEST(Knapsack, many_random_small_problems) {
    std::mt19937_64 random(7);
    for (int round = 0; round < 3000; ++round) {
        KnapsackProblem problem;
        const std::size_t groups = 1 + random() % 7;
        for (std::size_t g = 0; g < groups; ++g) {
            auto& group = problem.groups.emplace_back();
            const std::size_t options = 1 + random() % 5;
            for (std::size_t o = 0; o < options; ++o)
                group.push_back({random() % 1000, std::pow(10.0, -static_cast<double>(random() % 100) / 10.0)});
        }
        const std::uint64_t low = smallest_bytes(problem);
        problem.budget_bytes = low + random() % (largest_bytes(problem) - low + 1);
        const auto solution = solve_knapsack(problem);
        expect_consistent(problem, solution);
        ASSERT_TRUE(solution.exact);
        ASSERT_NEAR(solution.cost, brute_force(problem)->cost, 1e-13 * solution.cost) << round;
    }
}

TEST(Knapsack, agrees_with_a_table_over_every_byte) {
    std::mt19937_64 random(11);
    for (int round = 0; round < 60; ++round) {
        KnapsackProblem problem;
        const std::size_t groups = 20 + random() % 60;
        const std::uint64_t factor = round % 3 == 0 ? 8 : 1;
        for (std::size_t g = 0; g < groups; ++g) {
            auto& group = problem.groups.emplace_back();
            const std::uint64_t weights = 10 + random() % 30;
            // Every third problem has costs on a line (the hardest kind: all options look equally good).
            for (std::uint64_t bits = 1; bits <= 8; ++bits) {
                const auto bytes = weights * bits / 4;
                group.push_back({bytes * factor, round % 3 == 1 ? 1000.0 - static_cast<double>(bytes)
                                                                : std::exp2(-static_cast<double>(bits)) *
                                                                      static_cast<double>(1 + random() % 100)});
            }
        }
        const std::uint64_t low = smallest_bytes(problem);
        problem.budget_bytes = low + random() % (largest_bytes(problem) - low + 1);
        const auto solution = solve_knapsack(problem);
        expect_consistent(problem, solution);
        ASSERT_TRUE(solution.exact) << round;
        ASSERT_NEAR(solution.cost, table_optimum(problem), 1e-12 * solution.cost) << round;
    }
}

TEST(Knapsack, is_exact_on_transformer_shaped_problems) {
    double slowest = 0.0;
    for (std::uint64_t seed = 0; seed < 8; ++seed)
        for (const double bits : {2.3, 3.1, 4.25, 5.5, 7.0})
            for (const auto odd_bytes : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{40}}) {
                const auto problem = transformer(seed, 30, bits, odd_bytes);
                KnapsackSolution solution;
                slowest = std::max(slowest, timed(problem, solution));
                expect_consistent(problem, solution);
                EXPECT_TRUE(solution.exact) << seed << ' ' << bits << ' ' << odd_bytes;
                EXPECT_LT(solution.gap(), 1e-2 * solution.cost);
            }
    std::printf("210 x 14, transformer shapes: %.1f ms at most\n", slowest * 1e3);
}

TEST(Knapsack, shared_factors_agree_with_a_table) {
    // The same problem in units of its common divisor is small enough for a table.
    auto problem = transformer(3, 4, 4.0);
    std::uint64_t divisor = 0;
    for (const auto& group : problem.groups)
        for (const Option& option : group) divisor = std::gcd(divisor, option.bytes);
    ASSERT_GT(divisor, 100u);
    const auto solution = solve_knapsack(problem);
    EXPECT_TRUE(solution.exact);
    auto reduced = problem;
    reduced.budget_bytes /= divisor;
    for (auto& group : reduced.groups)
        for (Option& option : group) option.bytes /= divisor;
    EXPECT_NEAR(solution.cost, table_optimum(reduced), 1e-13 * solution.cost);
}

TEST(Knapsack, solves_large_problems_in_time) {
    for (const auto& [groups, limit] : {std::pair<std::size_t, double>{250, 0.25}, {1000, 1.0}}) {
        double slowest = 0.0, sum = 0.0;
        int count = 0;
        for (std::uint64_t seed = 0; seed < 6; ++seed)
            for (const double fill : {0.1, 0.3, 0.6}) {
                const auto problem = random_curves(seed, groups, 20, fill);
                KnapsackSolution solution;
                const double seconds = timed(problem, solution);
                slowest = std::max(slowest, seconds);
                sum += seconds;
                ++count;
                expect_consistent(problem, solution);
                EXPECT_TRUE(solution.exact) << groups << ' ' << seed << ' ' << fill;
            }
        std::printf("%zu x 20: %.1f ms at most, %.1f ms on average\n", groups, slowest * 1e3, sum / count * 1e3);
        if (timing_counts) {
            EXPECT_LT(slowest, limit);
        }
    }
}

TEST(Knapsack, options_on_a_line_are_solved_or_bounded) {
    // Cost proportional to bytes: nothing distinguishes the options, what is left is a subset-sum problem.
    std::mt19937_64 random(5);
    KnapsackProblem problem;
    for (std::size_t g = 0; g < 300; ++g) {
        auto& group = problem.groups.emplace_back();
        const std::uint64_t weights = 1'000'000 + random() % 30'000'000;
        for (std::uint64_t bits = 2; bits <= 8; ++bits)
            group.push_back(
                {weights * bits / 8, 1e-9 * static_cast<double>(weights) * (16.0 - static_cast<double>(bits))});
    }
    problem.budget_bytes = (smallest_bytes(problem) + largest_bytes(problem)) / 2;
    KnapsackSolution solution;
    const double seconds = timed(problem, solution);
    expect_consistent(problem, solution);
    EXPECT_LT(solution.gap(), 1e-6 * solution.cost);
    std::printf("300 x 7 on a line: %.1f ms, exact %d, gap %g of %g\n", seconds * 1e3, solution.exact, solution.gap(),
                solution.cost);
}

/// max over λ of Σ min (cost + λ·bytes) − λ·budget by ternary search on the definition: it is concave in λ.
long double dual_by_definition(const KnapsackProblem& problem) {
    const auto at = [&](long double lambda) {
        long double sum = -lambda * static_cast<long double>(problem.budget_bytes);
        for (const auto& group : problem.groups) {
            long double least = std::numeric_limits<long double>::infinity();
            for (const Option& option : group)
                least = std::min(
                    least, static_cast<long double>(option.cost) + lambda * static_cast<long double>(option.bytes));
            sum += least;
        }
        return sum;
    };
    long double low = 0.0L, high = 1.0L;
    while (at(2 * high) > at(high)) high *= 2;
    high *= 2;
    for (int i = 0; i < 300; ++i) {
        const long double a = low + (high - low) / 3, b = high - (high - low) / 3;
        (at(a) < at(b) ? low : high) = at(a) < at(b) ? a : b;
    }
    return at((low + high) / 2);
}

TEST(Knapsack, the_bound_is_the_lagrangian_one) {
    for (std::uint64_t seed = 0; seed < 12; ++seed)
        for (const double fill : {0.05, 0.4, 0.9}) {
            // Odd bytes, so that the common divisor is 1 and the budget is not rounded.
            auto problem = random_curves(seed, 40 + 20 * seed, 3 + seed, fill);
            problem.groups.push_back({{1, 0.0}, {2, 0.0}});
            const auto solution = solve_knapsack(problem);
            ASSERT_TRUE(solution.exact);
            const auto bound = static_cast<double>(dual_by_definition(problem));
            EXPECT_NEAR(solution.lower_bound, bound, 1e-9 * solution.cost) << seed << ' ' << fill;
            EXPECT_LE(bound, solution.cost * (1.0 + 1e-12));
        }
}

TEST(Knapsack, runs_out_of_labels_gracefully) {
    for (std::uint64_t seed = 0; seed < 20; ++seed) {
        const auto problem = random_curves(seed, 60, 12, 0.3);
        const auto exact = solve_knapsack(problem);
        ASSERT_TRUE(exact.exact);
        const auto coarse = solve_knapsack(problem, {.labels = 50});
        expect_consistent(problem, coarse);
        EXPECT_GE(coarse.cost, exact.cost * (1.0 - 1e-12));
        EXPECT_LE(coarse.lower_bound, exact.cost * (1.0 + 1e-12));
        EXPECT_LT(coarse.gap(), 0.02 * coarse.cost);
        if (coarse.exact) {
            EXPECT_NEAR(coarse.cost, exact.cost, 1e-12 * exact.cost);
        }
    }
}

TEST(Knapsack, one_group_takes_the_best_that_fits) {
    const KnapsackProblem problem{{{{10, 1.0}, {20, 0.5}, {30, 0.6}, {40, 0.1}}}, 39};
    const auto solution = solve_knapsack(problem);
    EXPECT_EQ(solution.choice, std::vector<std::size_t>{1});
    EXPECT_TRUE(solution.exact);
}

TEST(Knapsack, exact_fit_leaves_no_slack) {
    const KnapsackProblem problem{{{{10, 1.0}, {20, 0.5}}, {{7, 2.0}, {9, 1.0}}}, 29};
    const auto solution = solve_knapsack(problem);
    EXPECT_EQ(solution.bytes, 29u);
    EXPECT_DOUBLE_EQ(solution.cost, 1.5);
    EXPECT_DOUBLE_EQ(solution.gap(), 0.0);
    const auto least = solve_knapsack({problem.groups, 17});
    EXPECT_EQ(least.bytes, 17u);
    EXPECT_TRUE(least.exact);
}

TEST(Knapsack, equal_options_take_the_first_and_equal_costs_the_smaller) {
    const auto solution = solve_knapsack({{{{10, 1.0}, {10, 1.0}, {12, 1.0}}, {{5, 0.0}, {5, 0.0}}}, 1000});
    EXPECT_EQ(solution.choice, (std::vector<std::size_t>{0, 0}));
    EXPECT_EQ(solution.bytes, 15u);
}

TEST(Knapsack, negative_and_zero_costs_are_costs) {
    const auto solution = solve_knapsack({{{{10, 0.0}, {20, -1e-9}}, {{10, 1e-9}, {20, 0.0}}}, 30});
    EXPECT_TRUE(solution.exact);
    EXPECT_NEAR(solution.cost, 0.0, 1e-20);
    EXPECT_EQ(solution.bytes, 30u);
}

TEST(Knapsack, no_groups_cost_nothing) {
    const auto solution = solve_knapsack({{}, 0});
    EXPECT_TRUE(solution.exact);
    EXPECT_EQ(solution.bytes, 0u);
}

TEST(Knapsack, impossible_budget_says_what_would_be_possible) {
    try {
        solve_knapsack({{{{10, 1.0}, {20, 0.5}}, {{7, 2.0}}}, 16});
        FAIL();
    } catch (const BudgetTooSmall& error) {
        EXPECT_EQ(error.smallest_bytes(), 17u);
        EXPECT_NE(std::string(error.what()).find("17"), std::string::npos);
    }
}

TEST(Knapsack, refuses_costs_that_are_no_numbers_and_empty_groups) {
    for (const double cost :
         {std::nan(""), std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity()})
        EXPECT_THROW(solve_knapsack({{{{1, 0.0}, {2, cost}}}, 10}), Error);
    EXPECT_THROW(solve_knapsack({{{{1, 0.0}}, {}}, 10}), Error);
}

}  // namespace
}  // namespace cerebellum
