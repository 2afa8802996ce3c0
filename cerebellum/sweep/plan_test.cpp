#include "cerebellum/sweep/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "cerebellum/core/quant_type.h"
#include "cerebellum/gguf/gguf_support_test.h"

namespace cerebellum {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Not;

TensorInfo matrix(std::int64_t row_length, ggml_type type) {
    TensorInfo tensor;
    tensor.name = "blk.0.attn_q.weight";
    tensor.type = type;
    tensor.shape = {row_length, 64, 1, 1};
    tensor.n_dims = 2;
    tensor.size_bytes = type_size_bytes(type, row_length, 64);
    return tensor;
}

TEST(AdmissibleTypes, of_rows_of_256_are_all_but_the_source_s_own) {
    const auto types = admissible_types(matrix(256, GGML_TYPE_F16), {}, true);
    EXPECT_EQ(types.size(), default_types().size());
    EXPECT_TRUE(std::ranges::is_sorted(types, std::greater<>{}, bits_per_weight));
    EXPECT_THAT(types, Not(Contains(GGML_TYPE_F16)));
    EXPECT_THAT(admissible_types(matrix(256, GGML_TYPE_F32), {}, true), Contains(GGML_TYPE_BF16));
}

TEST(AdmissibleTypes, of_rows_of_576_are_those_of_32_weights_a_block) {
    EXPECT_THAT(admissible_types(matrix(576, GGML_TYPE_F16), {}, true),
                ::testing::UnorderedElementsAre(GGML_TYPE_Q8_0, GGML_TYPE_Q5_1, GGML_TYPE_Q5_0, GGML_TYPE_Q4_1,
                                                GGML_TYPE_Q4_0, GGML_TYPE_IQ4_NL));
    EXPECT_THAT(admissible_types(matrix(100, GGML_TYPE_F16), {}, true), IsEmpty());
}

TEST(AdmissibleTypes, without_importance_matrix_leave_out_what_needs_one) {
    const auto types = admissible_types(matrix(256, GGML_TYPE_F16), {}, false);
    for (const auto type : {GGML_TYPE_IQ2_XXS, GGML_TYPE_IQ2_XS, GGML_TYPE_IQ1_S})
        EXPECT_THAT(types, Not(Contains(type)));
    EXPECT_EQ(types.size(), default_types().size() - 3);
}

TEST(AdmissibleTypes, are_smaller_than_the_source_and_among_the_allowed) {
    for (const auto type : admissible_types(matrix(256, GGML_TYPE_Q4_1), {}, true))
        EXPECT_LT(bits_per_weight(type), 5.0);
    const ggml_type allowed[] = {GGML_TYPE_Q2_K, GGML_TYPE_Q6_K, GGML_TYPE_Q2_K, GGML_TYPE_F32};
    EXPECT_THAT(admissible_types(matrix(256, GGML_TYPE_F16), allowed, true),
                ElementsAre(GGML_TYPE_Q6_K, GGML_TYPE_Q2_K));
}

TEST(FewTypes, are_spread_over_the_sizes_and_quickly_quantized) {
    const auto all = admissible_types(matrix(256, GGML_TYPE_F16), {}, true);
    const auto few = few_types(all);
    EXPECT_THAT(few, ElementsAre(GGML_TYPE_Q8_0, GGML_TYPE_Q6_K, GGML_TYPE_Q5_K, GGML_TYPE_Q4_K, GGML_TYPE_Q3_K,
                                 GGML_TYPE_Q2_K, GGML_TYPE_IQ1_S));
    EXPECT_THAT(few_types(admissible_types(matrix(576, GGML_TYPE_F16), {}, true)), Contains(GGML_TYPE_Q4_0));
    EXPECT_THAT(few_types({}), IsEmpty());
}

TEST(FewTypes, keep_the_smallest_file_that_all_types_can_make) {
    const auto all = admissible_types(matrix(256, GGML_TYPE_F16), {}, true);
    EXPECT_EQ(bits_per_weight(few_types(all).back()), bits_per_weight(all.back()));
}

TEST(Anchors, are_some_of_the_types) {
    for (const std::vector<ggml_type>& types :
         {default_types(), {GGML_TYPE_Q8_0, GGML_TYPE_Q4_0}, {GGML_TYPE_Q6_K}, {}}) {
        const auto anchors = choose_anchors(types);
        EXPECT_EQ(anchors.empty(), types.empty());
        for (std::size_t i = 0; i < anchors.size(); ++i) {
            EXPECT_THAT(types, Contains(anchors[i]));
            EXPECT_EQ(std::ranges::count(anchors, anchors[i]), 1);
        }
    }
    EXPECT_GE(choose_anchors(default_types()).size(), 2U);
}

TEST(Anchors, each_rounding_has_its_own_of_the_types_measured_in_it) {
    const testing::TemporaryFolder folder;
    testing::write_test_gguf(folder / "m.gguf", {{"blk.0.attn_q.weight", GGML_TYPE_F16, {256, 64, 1, 1}}},
                             [](gguf_context*) {});
    const auto source = GgufFile::open(folder / "m.gguf");
    const std::vector<std::string> names = {"blk.0.attn_q.weight"};
    PlanOptions options;
    options.takes_feedback = [](const TensorInfo&, ggml_type type) { return !type_needs_imatrix(type); };
    for (const auto rounding : {RoundingChoice::ggml, RoundingChoice::feedback, RoundingChoice::automatic}) {
        options.rounding = rounding;
        const auto plan = make_plan(
            source, names, [](const std::string&) { return true; }, options);
        ASSERT_EQ(plan.size(), 1U);
        std::map<Rounding, std::vector<ggml_type>> types, anchors;
        for (const auto& type : plan[0].types) types[type.rounding].push_back(type.type);
        for (const auto& type : plan[0].anchors) anchors[type.rounding].push_back(type.type);
        for (const auto& [which, list] : types) EXPECT_EQ(anchors[which], choose_anchors(list));
        EXPECT_EQ(types.contains(Rounding::feedback), rounding != RoundingChoice::ggml);
        for (const auto type : types[Rounding::feedback])
            EXPECT_EQ(std::ranges::count(types[Rounding::ggml], type), rounding == RoundingChoice::automatic ? 1 : 0);
        EXPECT_THAT(types[Rounding::ggml], Contains(GGML_TYPE_IQ2_XXS));
    }
}

TEST(Windows, are_taken_in_an_order_of_which_every_part_is_spread) {
    EXPECT_EQ(spread_order(8), (std::vector<std::size_t>{0, 4, 2, 6, 1, 5, 3, 7}));
    EXPECT_TRUE(spread_order(0).empty());
    for (const std::size_t n : {1U, 2U, 5U, 12U, 31U, 100U}) {
        auto order = spread_order(n);
        for (const std::size_t part : {2U, 4U, 8U}) {
            if (part >= n) continue;
            std::vector<std::size_t> first(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(part));
            std::ranges::sort(first);
            for (std::size_t i = 0; i + 1 < part; ++i) EXPECT_LE(first[i + 1] - first[i], 2 * n / part + 1) << n;
        }
        std::ranges::sort(order);
        for (std::size_t i = 0; i < n; ++i) EXPECT_EQ(order.at(i), i);
    }
}

}  // namespace
}  // namespace cerebellum
