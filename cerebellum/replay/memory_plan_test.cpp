#include "cerebellum/replay/memory_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cerebellum/core/error.h"

namespace cerebellum {
namespace {

constexpr std::size_t mebibyte = std::size_t{1} << 20;

/// Something like a model of 27 billion parameters in 16 bits: 64 blocks of 800 MiB and a head of 2.4 GiB.
MemoryNeeds large_model() {
    MemoryNeeds needs;
    needs.range_bytes.assign(65, 800 * mebibyte);
    needs.range_bytes.back() = 2400 * mebibyte;
    needs.weight_bytes = 64 * 800 * mebibyte + 2400 * mebibyte;
    needs.largest_weight_bytes = 2400 * mebibyte;
    needs.temporary_bytes = 2000 * mebibyte;
    needs.state_bytes = 10 * mebibyte;
    needs.n_windows = 16;
    return needs;
}

TEST(MemoryPlan, without_limits_everything_is_resident) {
    for (const bool host : {true, false}) {
        const auto plan = plan_memory(large_model(), {}, host);
        EXPECT_TRUE(plan.resident);
        EXPECT_EQ(plan.weight_bytes, MemoryPlan::unlimited);
        EXPECT_EQ(plan.device_value_bytes, MemoryPlan::unlimited);
        EXPECT_EQ(plan.host_value_bytes, MemoryPlan::unlimited);
    }
}

TEST(MemoryPlan, a_limit_above_the_need_leaves_the_weights_where_they_are) {
    const auto plan = plan_memory(large_model(), {0, 80000 * mebibyte, {}}, false);
    EXPECT_TRUE(plan.resident);
    EXPECT_EQ(plan.weight_bytes, large_model().weight_bytes);
}

TEST(MemoryPlan, below_the_need_weights_are_streamed_and_states_get_the_rest) {
    const auto needs = large_model();
    for (const std::size_t limit : {8000 * mebibyte, 12000 * mebibyte, 20000 * mebibyte}) {
        const auto plan = plan_memory(needs, {0, limit, {}}, false);
        EXPECT_FALSE(plan.resident);
        EXPECT_EQ(plan.weight_bytes, 2400 * mebibyte);
        EXPECT_LE(plan.weight_bytes + plan.device_value_bytes + needs.temporary_bytes, limit);
        EXPECT_GE(plan.wave_bytes, 4 * needs.state_bytes);
        EXPECT_EQ(plan.host_value_bytes, MemoryPlan::unlimited);
    }
    const auto small = plan_memory(needs, {0, 8000 * mebibyte, {}}, false);
    const auto large = plan_memory(needs, {0, 20000 * mebibyte, {}}, false);
    EXPECT_GT(large.wave_bytes, small.wave_bytes) << "more memory must mean fewer passes over the weights";
}

TEST(MemoryPlan, on_the_cpu_one_limit_holds_for_everything) {
    const auto needs = large_model();
    const std::size_t limit = 20000 * mebibyte;
    const auto plan = plan_memory(needs, {limit, 0, {}}, true);
    EXPECT_FALSE(plan.resident);
    EXPECT_LE(plan.weight_bytes + plan.host_value_bytes + needs.temporary_bytes, limit);
}

TEST(MemoryPlan, too_little_is_refused_with_what_would_do) {
    const auto needs = large_model();
    const auto message_of = [&](const MemoryLimits& limits, bool host) {
        try {
            plan_memory(needs, limits, host);
        } catch (const Error& error) {
            return std::string(error.what());
        }
        return std::string();
    };
    EXPECT_THAT(message_of({0, 1000 * mebibyte, {}}, false), ::testing::HasSubstr("--device-memory"));
    EXPECT_THAT(message_of({1000 * mebibyte, 0, {}}, true), ::testing::HasSubstr("--memory 1.05 GB"));
    EXPECT_EQ(message_of({0, 6000 * mebibyte, {}}, false), "");
}

TEST(SpreadRanges, divides_weights_as_the_capacities_are_with_the_head_on_the_first_device) {
    const std::vector<std::size_t> equal(8, 100);
    const std::size_t one[] = {7}, two[] = {50, 50}, uneven[] = {30, 10}, three[] = {1, 1, 2};
    using Devices = std::vector<std::size_t>;
    EXPECT_EQ(spread_ranges(equal, one), Devices(8, 0));
    EXPECT_EQ(spread_ranges(equal, two), (Devices{1, 1, 1, 1, 0, 0, 0, 0}));
    EXPECT_EQ(spread_ranges(equal, uneven), (Devices{1, 1, 0, 0, 0, 0, 0, 0}));
    EXPECT_EQ(spread_ranges(equal, three), (Devices{2, 2, 2, 2, 1, 1, 0, 0}));
    const std::size_t large_head[] = {10, 10, 10, 10, 60};
    EXPECT_EQ(spread_ranges(large_head, two), (Devices{1, 1, 1, 1, 0}));
}

}  // namespace
}  // namespace cerebellum
