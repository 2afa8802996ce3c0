// The knapsack against an integer-programming solver that knows nothing of it (GLPK's branch and cut).
#include <glpk.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <random>

#include "cerebellum/allocate/knapsack.h"

namespace cerebellum {
namespace {

struct Referee {
    std::uint64_t bytes = 0;
    double cost = 0.0;
    double bound = 0.0;  // nothing costs less
};

/// One binary variable per option, one equation per group. `gap`: GLPK may stop when it has proved its solution to be
/// within this share of the best.
Referee by_integer_programming(const KnapsackProblem& problem, double gap) {
    glp_term_out(GLP_OFF);
    const std::unique_ptr<glp_prob, void (*)(glp_prob*)> owner(glp_create_prob(), glp_delete_prob);
    glp_prob* p = owner.get();
    glp_set_obj_dir(p, GLP_MIN);
    const int n_groups = static_cast<int>(problem.groups.size());
    glp_add_rows(p, n_groups + 1);
    glp_set_row_bnds(p, n_groups + 1, GLP_UP, 0.0, static_cast<double>(problem.budget_bytes));
    for (int g = 0; g < n_groups; ++g) {
        glp_set_row_bnds(p, g + 1, GLP_FX, 1.0, 1.0);
        for (const Option& option : problem.groups[static_cast<std::size_t>(g)]) {
            const int column = glp_add_cols(p, 1);
            glp_set_col_kind(p, column, GLP_BV);
            glp_set_obj_coef(p, column, option.cost);
            const int rows[] = {0, g + 1, n_groups + 1};
            const double values[] = {0.0, 1.0, static_cast<double>(option.bytes)};
            glp_set_mat_col(p, column, 2, rows, values);
        }
    }
    glp_iocp settings;
    glp_init_iocp(&settings);
    settings.presolve = GLP_ON;
    settings.mir_cuts = settings.cov_cuts = GLP_ON;
    settings.br_tech = GLP_BR_PCH;
    settings.bt_tech = GLP_BT_BLB;
    settings.mip_gap = gap;
    const int status = glp_intopt(p, &settings);
    EXPECT_TRUE(status == 0 || (gap > 0.0 && status == GLP_EMIPGAP)) << status;
    // GLPK's sums are floating-point; what its choice comes to is counted here.
    Referee result;
    int column = 0;
    for (const auto& group : problem.groups)
        for (const Option& option : group)
            if (glp_mip_col_val(p, ++column) > 0.5) {
                result.bytes += option.bytes;
                result.cost += option.cost;
            }
    result.bound = result.cost - gap * std::fabs(result.cost);
    return result;
}

KnapsackProblem random_problem(std::mt19937_64& random, std::size_t groups, std::size_t options) {
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> uniform;
    KnapsackProblem problem;
    // Costs of any size and kind: curves that fall with bytes as measured ones do, or plain noise. They are of the
    // order of one, where the referee's tolerances are small.
    const bool curves = random() % 4 != 0;
    const std::uint64_t lump = random() % 3 == 0 ? 32 : 1;
    std::uint64_t smallest = 0, largest = 0;
    for (std::size_t g = 0; g < groups; ++g) {
        auto& group = problem.groups.emplace_back();
        const double weights = 200.0 + 2000.0 * uniform(random), level = std::exp(normal(random));
        for (std::size_t o = 0; o < options; ++o) {
            const double bits = 1.5 + 7.0 * uniform(random);
            const auto bytes = static_cast<std::uint64_t>(weights * bits / 8.0) / lump * lump;
            const double cost =
                curves ? 10.0 * level * std::exp2(-bits + 0.5 * normal(random)) : 10.0 * uniform(random);
            group.push_back({bytes, cost});
        }
        const auto [low, high] = std::ranges::minmax(group, {}, &Option::bytes);
        smallest += low.bytes;
        largest += high.bytes;
    }
    problem.budget_bytes =
        smallest + static_cast<std::uint64_t>(uniform(random) * static_cast<double>(largest - smallest));
    return problem;
}

void expect_same(const KnapsackProblem& problem, double gap, const std::string& what) {
    const auto ours = solve_knapsack(problem);
    const auto referee = by_integer_programming(problem, gap);
    ASSERT_TRUE(ours.exact) << what;
    ASSERT_LE(ours.bytes, problem.budget_bytes) << what;
    ASSERT_LE(referee.bytes, problem.budget_bytes) << what;
    const double slack = 1e-9 * (1.0 + std::fabs(referee.cost));
    ASSERT_LE(ours.cost, referee.cost + slack) << what;
    ASSERT_GE(ours.cost, referee.bound - slack) << what;
    ASSERT_LE(ours.lower_bound, referee.cost + slack) << what;
}

TEST(KnapsackReferee, a_thousand_random_problems) {
    std::mt19937_64 random(17);
    for (int round = 0; round < 1000; ++round) {
        const std::size_t groups = 1 + random() % (round % 10 == 0 ? 40 : 12), options = 1 + random() % 8;
        expect_same(random_problem(random, groups, options), 0.0, "problem " + std::to_string(round));
        if (HasFatalFailure()) return;
    }
}

TEST(KnapsackRefereeSlow, larger_problems_up_to_2000_tensors_in_20_types) {
    std::mt19937_64 random(18);
    for (const auto& [groups, options, count] :
         {std::tuple<std::size_t, std::size_t, int>{100, 12, 20}, {400, 20, 5}, {1000, 20, 2}, {2000, 20, 2}})
        for (int round = 0; round < count; ++round) {
            const auto problem = random_problem(random, groups, options);
            const auto start = std::chrono::steady_clock::now();
            expect_same(problem, groups <= 400 ? 1e-6 : 1e-4, std::to_string(groups) + " x " + std::to_string(options));
            std::printf("%zu x %zu: %.1f s with the referee\n", groups, options,
                        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
            if (HasFatalFailure()) return;
        }
}

}  // namespace
}  // namespace cerebellum
