#include "cerebellum/sweep/split.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <set>

#include "cerebellum/gguf/gguf_support_test.h"
#include "cerebellum/llama/log.h"
#include "cerebellum/llama/model.h"
#include "cerebellum/llama/recorder.h"

namespace cerebellum {
namespace {

using ::testing::ElementsAre;

WorkItem item(const std::string& name, double cost) {
    WorkItem result;
    result.plan.name = name;
    result.cost = cost;
    return result;
}

double total(std::span<const WorkItem> items) {
    double sum = 0.0;
    for (const auto& one : items) sum += one.cost;
    return sum;
}

RC_GTEST_PROP(Shards, together_are_the_whole_and_each_is_near_its_share, ()) {
    const auto costs = *rc::gen::nonEmpty(rc::gen::container<std::vector<double>>(
        rc::gen::map(rc::gen::inRange(1, 1000), [](int n) { return static_cast<double>(n); })));
    const auto count = *rc::gen::inRange<std::size_t>(1, 12);
    std::vector<WorkItem> items;
    for (std::size_t i = 0; i < costs.size(); ++i) items.push_back(item(std::to_string(i), costs[i]));
    std::multiset<std::string> seen;
    const double share = total(items) / static_cast<double>(count), dearest = std::ranges::max(costs);
    for (std::size_t index = 1; index <= count; ++index) {
        const auto mine = items_of({index, count}, items);
        for (const auto& one : mine) seen.insert(one.plan.name);
        RC_ASSERT(total(mine) <= share + dearest);
    }
    RC_ASSERT(seen.size() == items.size());
    for (const auto& one : items) RC_ASSERT(seen.count(one.plan.name) == 1U);
}

TEST(Shards, keep_the_order_of_the_plan) {
    const WorkItem items[] = {item("a", 1.0), item("b", 5.0), item("c", 4.0), item("d", 2.0)};
    const auto names = [&](std::size_t index) {
        std::vector<std::string> result;
        for (const auto& one : items_of({index, 2}, items)) result.push_back(one.plan.name);
        return result;
    };
    EXPECT_THAT(names(1), ElementsAre("a", "b"));
    EXPECT_THAT(names(2), ElementsAre("c", "d"));
}

TEST(SplitPlan, keeps_tensors_of_blocks_whole_and_others_by_type) {
    silence_llama_log();
    const auto model = Model::load(testing::small_model());
    const Recorder recorder(model, 32);
    const Topology topology(recorder.graph());
    const SweepMap map(topology);
    std::vector<TensorPlan> plan;
    for (const auto* name :
         {"token_embd.weight", "blk.0.attn_q.weight", "blk.4.attn_q.weight", "blk.9.none.weight", "output.weight"}) {
        TensorPlan tensor;
        tensor.name = name;
        tensor.types = {GGML_TYPE_Q6_K, GGML_TYPE_Q4_0, GGML_TYPE_Q2_K};
        tensor.anchors = {GGML_TYPE_Q4_0, GGML_TYPE_Q2_K};
        plan.push_back(tensor);
    }
    const auto items = split_plan(map, plan, 4);
    ASSERT_EQ(items.size(), 8U);
    for (std::size_t i : {0U, 1U, 2U, 5U, 6U, 7U}) EXPECT_EQ(items[i].plan.types.size(), 1U) << i;
    EXPECT_THAT(items[0].plan.anchors, ElementsAre());
    EXPECT_THAT(items[1].plan.anchors, ElementsAre(GGML_TYPE_Q4_0));
    EXPECT_EQ(items[3].plan.types, plan[1].types);
    EXPECT_EQ(items[3].plan.anchors, plan[1].anchors);
    EXPECT_LT(items[3].position, items[4].position);
    EXPECT_GT(items[3].cost, items[4].cost) << "the suffix is shorter";
    EXPECT_EQ(items[5].position, map.ranges().size()) << "the head is behind all blocks";
    EXPECT_LT(items[5].cost, items[0].cost);
    EXPECT_GT(items[5].cost, 0.0);
    // Twice the windows, twice the replays, and no more to quantize.
    const auto twice = split_plan(map, plan, 8);
    for (std::size_t i = 0; i < items.size(); ++i) {
        EXPECT_GT(twice[i].cost, items[i].cost) << i;
        EXPECT_LT(twice[i].cost, 2.0 * items[i].cost) << i;
    }
}

TEST(SplitPlan, through_whole_files_every_pair_costs_the_same) {
    TensorPlan tensor;
    tensor.name = "blk.0.attn_q.weight";
    tensor.types = {GGML_TYPE_Q6_K, GGML_TYPE_Q4_0};
    const auto items = split_plan(std::vector{tensor});
    ASSERT_EQ(items.size(), 2U);
    EXPECT_THAT(items[1].plan.types, ElementsAre(GGML_TYPE_Q4_0));
    EXPECT_EQ(items[0].cost, items[1].cost);
}

}  // namespace
}  // namespace cerebellum
