#include "cerebellum/allocate/frontier.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "cerebellum/core/error.h"

namespace cerebellum {
namespace {

AllocationProblem random_problem(std::uint64_t seed, std::size_t tensors, std::size_t types, bool couple) {
    std::mt19937_64 random(seed);
    std::normal_distribution<double> normal;
    AllocationProblem problem;
    problem.fixed_bytes = 777;
    for (std::size_t i = 0; i < tensors; ++i) {
        TensorChoices tensor{"t" + std::to_string(i), {}};
        const auto weights = static_cast<double>(320 + 32 * (random() % 100));
        const double level = std::exp(normal(random));
        for (std::size_t t = 0; t < types; ++t) {
            const double bits = 2.0 + static_cast<double>(t);
            tensor.choices.push_back({static_cast<ggml_type>(t + 1), static_cast<std::uint64_t>(weights * bits / 8.0),
                                      level * std::exp2(-bits + 0.5 * normal(random))});
        }
        problem.tensors.push_back(tensor);
    }
    if (couple) problem.coupled = {{0, 2}, {1, 3, 4}};
    return problem;
}

TEST(Frontier, every_point_is_the_best_file_of_its_size) {
    for (std::uint64_t seed = 0; seed < 30; ++seed) {
        auto problem = random_problem(seed, 12, 5, seed % 2 == 1);
        const auto frontier = solve_frontier(problem);
        const auto points = points_of(frontier);
        ASSERT_GT(points.size(), 5U);
        EXPECT_EQ(points.front().file_bytes, smallest_file_bytes(problem));
        for (std::size_t i = 0; i < points.size(); ++i) {
            const auto allocation = allocate(problem, points[i].file_bytes);
            EXPECT_NEAR(allocation.cost, points[i].cost, 1e-12) << seed << ' ' << i;
            const auto types = types_at(frontier, points[i].file_bytes);
            std::uint64_t bytes = problem.fixed_bytes;
            double kld = 0.0;
            for (const auto& tensor : problem.tensors)
                for (const auto& choice : tensor.choices)
                    if (choice.type == types.at(tensor.name)) {
                        bytes += choice.bytes;
                        kld += choice.cost;
                    }
            EXPECT_EQ(bytes, points[i].file_bytes);
            EXPECT_NEAR(kld, points[i].cost, 1e-12);
            if (i > 0) {
                EXPECT_GT(points[i].file_bytes, points[i - 1].file_bytes);
                EXPECT_LT(points[i].cost, points[i - 1].cost);
            }
        }
    }
}

TEST(AllocateUnder, finds_the_smallest_file_of_all_assignments) {
    for (std::uint64_t seed = 0; seed < 40; ++seed) {
        auto problem = random_problem(seed, 6, 4, false);
        if (seed % 2 == 1) problem.coupled = {{0, 3}};
        const auto points = points_of(solve_frontier(problem));
        for (const double share : {1e-9, 0.02, 0.3, 0.8, 1.5}) {
            const double limit = points.back().cost + share * (points.front().cost - points.back().cost);
            const auto found = allocate_under(problem, limit);
            const auto groups = groups_of(problem);
            std::vector<std::size_t> choice(groups.size(), 0);
            std::uint64_t least = std::numeric_limits<std::uint64_t>::max();
            while (true) {
                std::uint64_t bytes = problem.fixed_bytes;
                double kld = 0.0;
                for (std::size_t g = 0; g < groups.size(); ++g) {
                    bytes += groups[g].choices[choice[g]].bytes;
                    kld += groups[g].choices[choice[g]].cost;
                }
                if (kld <= limit * (1.0 + 1e-14)) least = std::min(least, bytes);
                std::size_t g = 0;
                while (g < groups.size() && ++choice[g] == groups[g].choices.size()) choice[g++] = 0;
                if (g == groups.size()) break;
            }
            EXPECT_TRUE(found.exact);
            EXPECT_EQ(found.file_bytes, least) << seed << ' ' << share;
            EXPECT_LE(found.cost, limit * (1.0 + 1e-14));
        }
    }
}

TEST(AllocateUnder, a_limited_number_of_types_is_kept) {
    auto problem = random_problem(3, 10, 5, false);
    problem.max_types = 2;
    const auto points = points_of(solve_frontier(random_problem(3, 10, 5, false)));
    const double limit = 0.5 * (points.front().cost + points.back().cost);
    const auto found = allocate_under(problem, limit);
    EXPECT_LE(found.cost, limit);
    const auto smaller = found.file_bytes - std::max<std::uint64_t>(1, found.file_bytes / 10'000) - 1;
    EXPECT_GT(allocate(problem, smaller).cost, limit);
}

TEST(AllocateUnder, says_what_the_least_is) {
    const auto problem = random_problem(1, 5, 4, false);
    try {
        allocate_under(problem, 1e-9);
        FAIL();
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("the least is"), std::string::npos);
    }
}

TEST(Frontier, knees_are_found_where_the_curve_bends) {
    // Log damage falls by 4 per unit of size up to 3, then by 1: one knee.
    std::vector<FrontierPoint> points;
    for (int i = 0; i <= 100; ++i) {
        const double x = 0.1 * i;
        const double log_kld = x < 3.0 ? -2.0 * x : -6.0 - 0.3 * (x - 3.0);
        points.push_back({static_cast<std::uint64_t>(1e6 * (1.0 + x)), std::exp(log_kld)});
    }
    EXPECT_EQ(knee_points(points), std::vector<std::size_t>{30});
    // A straight line has none, nor have two points.
    for (int i = 0; i <= 100; ++i) points[static_cast<std::size_t>(i)].cost = std::exp(-0.05 * i);
    EXPECT_TRUE(knee_points(points).empty());
    EXPECT_TRUE(knee_points(std::span(points).first(2)).empty());
    // Two bends.
    for (int i = 0; i <= 100; ++i) {
        const double x = 0.1 * i;
        const double log_kld = x < 2.0   ? -2.0 * x
                               : x < 5.0 ? -4.0 - 0.1 * (x - 2.0)
                               : x < 6.5 ? -4.3 - 2.0 * (x - 5.0)
                                         : -7.3 - 0.1 * (x - 6.5);
        points[static_cast<std::size_t>(i)].cost = std::exp(log_kld);
    }
    EXPECT_EQ(knee_points(points), (std::vector<std::size_t>{20, 65}));
    EXPECT_EQ(knee_points(points, 1).size(), 1U);
}

TEST(Frontier, a_limited_number_of_types_is_refused) {
    auto problem = random_problem(1, 5, 4, false);
    problem.max_types = 2;
    EXPECT_THROW(solve_frontier(problem), Error);
}

}  // namespace
}  // namespace cerebellum
