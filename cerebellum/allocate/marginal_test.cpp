#include "cerebellum/allocate/marginal.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>

namespace cerebellum {
namespace {

/// Three tensors with the same sizes; damage falls fourfold with every step, from another start each. Of the first
/// tensor one type lies above the hull.
AllocationProblem three_tensors() {
    AllocationProblem problem;
    for (const double damage : {1.0, 0.3, 0.02}) {
        auto& tensor = problem.tensors.emplace_back();
        tensor.name = "t" + std::to_string(problem.tensors.size());
        tensor.choices = {{GGML_TYPE_F16, 1600, 0.0},
                          {GGML_TYPE_Q2_K, 200, damage},
                          {GGML_TYPE_Q4_K, 400, damage / 4.0},
                          {GGML_TYPE_Q6_K, 600, damage / 16.0},
                          {GGML_TYPE_Q8_0, 800, damage / 64.0}};
    }
    problem.tensors[0].choices.push_back({GGML_TYPE_Q5_0, 500, 0.24});
    return problem;
}

ggml_type type_of(const AllocationProblem& problem, const Move& move) {
    return problem.tensors[move.tensor].choices[move.choice].type.type;
}

TEST(MarginalMoves, are_the_next_types_worth_having_in_both_directions) {
    const auto problem = three_tensors();
    const auto moves = marginal_moves(problem, {{"t1", GGML_TYPE_Q4_K}, {"t2", GGML_TYPE_Q2_K}, {"t3", GGML_TYPE_F16}});
    std::map<std::size_t, std::set<ggml_type>> to;
    for (const auto& move : moves) to[move.tensor].insert(type_of(problem, move));
    EXPECT_EQ(to[0], (std::set{GGML_TYPE_Q2_K, GGML_TYPE_Q6_K})) << "not Q5_0, above the hull";
    EXPECT_EQ(to[1], (std::set{GGML_TYPE_Q4_K})) << "nothing is smaller";
    EXPECT_EQ(to[2], (std::set{GGML_TYPE_Q8_0})) << "nothing is larger";
}

TEST(MarginalMoves, begin_with_the_swap_that_an_allocation_missed) {
    const auto problem = three_tensors();
    // t1 is starved and t3 is spoilt: taking from t3 and giving to t1 is best.
    const auto moves =
        marginal_moves(problem, {{"t1", GGML_TYPE_Q2_K}, {"t2", GGML_TYPE_Q4_K}, {"t3", GGML_TYPE_Q6_K}});
    ASSERT_GE(moves.size(), 4U);
    EXPECT_EQ(moves.front().tensor, 0U);
    EXPECT_EQ(type_of(problem, moves.front()), GGML_TYPE_Q4_K);
    EXPECT_LT(moves.front().penalty, 0.0);
    EXPECT_EQ(moves[1].tensor, 2U);
    EXPECT_EQ(type_of(problem, moves[1]), GGML_TYPE_Q4_K);
}

TEST(MarginalMoves, of_an_optimal_recipe_all_cost_something) {
    auto problem = three_tensors();
    const auto optimal = allocate(problem, 1200);
    for (const auto& move : marginal_moves(problem, optimal.types)) EXPECT_GE(move.penalty, -1e-12);
}

}  // namespace
}  // namespace cerebellum
