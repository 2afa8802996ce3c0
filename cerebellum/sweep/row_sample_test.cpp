#include "cerebellum/sweep/row_sample.h"

#include <gtest/gtest.h>

#include <cmath>

namespace cerebellum {
namespace {

TEST(SampleRows, takes_one_row_of_every_part_and_the_same_ones_every_time) {
    const auto rows = sample_rows("blk.3.ffn_up.weight", 1000, 64);
    ASSERT_EQ(rows.size(), 64U);
    for (std::size_t i = 0; i < rows.size(); ++i) {
        EXPECT_GE(rows[i], static_cast<std::int64_t>(i) * 1000 / 64);
        EXPECT_LT(rows[i], static_cast<std::int64_t>(i + 1) * 1000 / 64);
    }
    EXPECT_EQ(rows, sample_rows("blk.3.ffn_up.weight", 1000, 64));
    EXPECT_NE(rows, sample_rows("blk.4.ffn_up.weight", 1000, 64));
}

TEST(SampleRows, a_sixteenth_of_the_rows_but_not_too_few) {
    EXPECT_EQ(rows_for(256), 192);
    EXPECT_EQ(rows_for(1536), 192);
    EXPECT_EQ(rows_for(8960), 560);
}

TEST(SampleRows, takes_none_where_nothing_would_be_saved) {
    EXPECT_TRUE(sample_rows("a", 127, 64).empty());
    EXPECT_EQ(sample_rows("a", 128, 64).size(), 64U);
    EXPECT_TRUE(sample_rows("a", 1000, 0).empty());
}

TEST(RowScaling, takes_the_geometric_mean_of_the_anchors_factors) {
    RowScaling scaling;
    scaling.add_sampled(GGML_TYPE_Q2_K, 5, 0.1);
    scaling.add_whole(GGML_TYPE_Q2_K, 5, 0.4);
    scaling.add_sampled(GGML_TYPE_Q4_K, 5, 0.01);
    scaling.add_whole(GGML_TYPE_Q4_K, 5, 0.09);
    EXPECT_NEAR(scaling.to_whole(GGML_TYPE_IQ3_S, 5, 0.02, 1.0), 0.02 * 6.0, 1e-12);
    EXPECT_EQ(scaling.to_whole(GGML_TYPE_IQ3_S, 5, 0.0, 1.0), 0.0);
    // An anchor that the sampled rows do not show tells nothing.
    scaling.add_sampled(GGML_TYPE_Q8_0, 5, 0.0);
    scaling.add_whole(GGML_TYPE_Q8_0, 5, 0.5);
    EXPECT_NEAR(scaling.to_whole(GGML_TYPE_IQ3_S, 5, 0.02, 1.0), 0.02 * 6.0, 1e-12);
}

TEST(RowScaling, without_an_anchor_of_that_rounding_and_window_takes_the_share_of_the_rows) {
    RowScaling scaling;
    scaling.add_sampled(GGML_TYPE_Q2_K, 0, 1.0);
    scaling.add_whole(GGML_TYPE_Q2_K, 0, 3.0);
    EXPECT_DOUBLE_EQ(scaling.to_whole(GGML_TYPE_Q3_K, 0, 1.0, 8.0), 3.0);
    EXPECT_EQ(scaling.to_whole(GGML_TYPE_Q3_K, 1, 1.0, 8.0), 8.0);
    EXPECT_EQ(scaling.to_whole({GGML_TYPE_Q3_K, Rounding::feedback}, 0, 1.0, 8.0), 8.0);
}

}  // namespace
}  // namespace cerebellum
