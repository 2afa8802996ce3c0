#include "cerebellum/llama/placement.h"

#include <gtest/gtest.h>

#include "cerebellum/core/error.h"
#include "cerebellum/gguf/gguf_support_test.h"

namespace cerebellum {
namespace {

TEST(Placement, all_files_run_at_once_where_there_is_room) {
    const std::size_t files[] = {40, 50, 60};
    const auto plan = plan_side_by_side(100, files, 10, 5, 100 + 150 + 4 * 5);
    ASSERT_EQ(plan.size(), 1U);
    EXPECT_EQ(plan[0].last, 3U);
    EXPECT_EQ(plan[0].gpu_layers, -1);
    EXPECT_EQ(plan_side_by_side(100, files, 10, 5, static_cast<std::size_t>(-1)).size(), 1U);
}

TEST(Placement, one_byte_less_and_the_last_one_comes_later) {
    const std::size_t files[] = {40, 50, 60};
    const auto plan = plan_side_by_side(100, files, 10, 5, 100 + 150 + 4 * 5 - 1);
    ASSERT_EQ(plan.size(), 2U);
    EXPECT_EQ(plan[0].last, 2U);
    EXPECT_EQ(plan[1].first, 2U);
    EXPECT_EQ(plan[1].last, 3U);
    EXPECT_EQ(plan[1].gpu_layers, -1);
}

TEST(Placement, what_does_not_fit_keeps_a_part_of_its_layers_in_host_memory) {
    const std::size_t files[] = {100, 300};
    // With the first one: 190 of 200 bytes of weights, so 20 of 21 layers and heads, rounded down.
    const auto plan = plan_side_by_side(100, files, 20, 5, 200);
    ASSERT_EQ(plan.size(), 2U);
    EXPECT_EQ(plan[0].gpu_layers, 19);
    EXPECT_EQ(plan[1].gpu_layers, 9);
    EXPECT_EQ(plan_side_by_side(100, files, 20, 5, 4).front().gpu_layers, 0);
}

TEST(Placement, a_number_of_layers_that_was_asked_for_is_kept) {
    const std::filesystem::path model = testing::small_model();
    const std::filesystem::path files[] = {model, model};
    RunPlace place;
    place.gpu_layers = 3;
    EXPECT_EQ(fitted(place, model, 1).gpu_layers, 3);
    EXPECT_EQ(plan_side_by_side(model, files, 1, place).front().gpu_layers, 3);
    EXPECT_EQ(plan_side_by_side(model, files, 1, {}).front().last, 2U);
    EXPECT_TRUE(fitted({}, model, 1).on_cpu());
}

TEST(Placement, the_cpu_is_no_device) {
    const std::string names[] = {"CPU", ""};
    EXPECT_TRUE(place_on(names).on_cpu());
    EXPECT_EQ(describe(place_on(names)), "CPU");
    const std::string none[] = {"TPU7"};
    EXPECT_FALSE(place_on(none).on_cpu());
    EXPECT_EQ(place_on(none).gpu_layers, -1);
    EXPECT_THROW(check_place(place_on(none)), UsageError);
    EXPECT_THROW(Model::load_to_run(testing::small_model(), place_on(none)), UsageError);
}

}  // namespace
}  // namespace cerebellum
