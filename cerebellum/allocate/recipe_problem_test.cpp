#include "cerebellum/allocate/recipe_problem.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

namespace cerebellum {
namespace {

AllocationProblem problem() {
    AllocationProblem result;
    result.fixed_bytes = 1000;
    result.tensors = {{"a", {{GGML_TYPE_F16, 200, 0.0}, {GGML_TYPE_Q8_0, 108, 0.01}, {GGML_TYPE_Q4_0, 60, 0.3}}},
                      {"b", {{GGML_TYPE_F16, 400, 0.0}, {GGML_TYPE_Q8_0, 216, 0.04}, {GGML_TYPE_Q4_0, 120, 0.2}}},
                      {"c", {{GGML_TYPE_F16, 80, 0.0}, {GGML_TYPE_Q4_0, 24, 0.5}}}};
    return result;
}

TEST(Allocate, is_the_best_of_all_assignments_and_never_over_budget) {
    const auto p = problem();
    for (std::uint64_t budget = 1204; budget < 1700; budget += 7) {
        double best = std::numeric_limits<double>::infinity();
        for (const auto& a : p.tensors[0].choices)
            for (const auto& b : p.tensors[1].choices)
                for (const auto& c : p.tensors[2].choices)
                    if (1000 + a.bytes + b.bytes + c.bytes <= budget) best = std::min(best, a.cost + b.cost + c.cost);
        const auto allocation = allocate(p, budget);
        EXPECT_LE(allocation.file_bytes, budget);
        EXPECT_NEAR(allocation.cost, best, 1e-12) << budget;
        EXPECT_LE(allocation.lower_bound, best + 1e-12);
        std::uint64_t bytes = p.fixed_bytes;
        for (const auto& tensor : p.tensors)
            for (const auto& choice : tensor.choices)
                if (choice.type == allocation.types.at(tensor.name)) bytes += choice.bytes;
        EXPECT_EQ(bytes, allocation.file_bytes);
    }
}

TEST(Allocate, names_the_smallest_size_where_the_budget_is_too_small) {
    for (const std::uint64_t budget : {std::uint64_t{0}, std::uint64_t{999}, std::uint64_t{1203}}) {
        try {
            allocate(problem(), budget);
            ADD_FAILURE() << budget;
        } catch (const Error& error) {
            EXPECT_THAT(error.what(), ::testing::HasSubstr("1204"));
        }
    }
    EXPECT_EQ(allocate(problem(), 1204).file_bytes, 1204U);
}

}  // namespace
}  // namespace cerebellum
