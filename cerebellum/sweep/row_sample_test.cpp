#include "cerebellum/sweep/row_sample.h"

#include <gtest/gtest.h>

#include <algorithm>
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

TEST(SampleRows, takes_none_where_nothing_would_be_saved) {
    EXPECT_TRUE(sample_rows("a", 127, 64).empty());
    EXPECT_EQ(sample_rows("a", 128, 64).size(), 64U);
    EXPECT_TRUE(sample_rows("a", 1000, 0).empty());
}

TEST(RowScaling, gives_back_a_factor_that_is_a_power_of_the_energy) {
    // whole = 9 · sampled^0.98, which anchors at both ends determine.
    const auto whole = [](double sampled) { return 9.0 * std::pow(sampled, 0.98); };
    RowScaling scaling;
    for (const auto& [type, energy] : {std::pair{GGML_TYPE_Q2_K, 0.1}, std::pair{GGML_TYPE_Q4_K, 0.001}}) {
        scaling.add_sampled(type, 5, energy);
        scaling.add_whole(type, 5, whole(energy));
    }
    EXPECT_NEAR(scaling.to_whole(GGML_TYPE_Q3_K, 5, 0.02, 1.0), whole(0.02), 1e-9);
    // Outside of them the nearest anchor's factor holds.
    EXPECT_NEAR(scaling.to_whole(GGML_TYPE_IQ1_S, 5, 0.5, 1.0), 0.5 * whole(0.1) / 0.1, 1e-9);
    EXPECT_NEAR(scaling.to_whole(GGML_TYPE_Q6_K, 5, 1e-5, 1.0), 1e-5 * whole(0.001) / 0.001, 1e-12);
    EXPECT_EQ(scaling.to_whole(GGML_TYPE_Q6_K, 5, 0.0, 1.0), 0.0);
}

TEST(RowScaling, without_an_anchor_of_that_rounding_and_window_takes_the_share_of_the_rows) {
    RowScaling scaling;
    scaling.add_sampled(GGML_TYPE_Q2_K, 0, 1.0);
    scaling.add_whole(GGML_TYPE_Q2_K, 0, 3.0);
    EXPECT_EQ(scaling.to_whole(GGML_TYPE_Q3_K, 0, 1.0, 8.0), 3.0);
    EXPECT_EQ(scaling.to_whole(GGML_TYPE_Q3_K, 1, 1.0, 8.0), 8.0);
    EXPECT_EQ(scaling.to_whole({GGML_TYPE_Q3_K, Rounding::feedback}, 0, 1.0, 8.0), 8.0);
}

}  // namespace
}  // namespace cerebellum
