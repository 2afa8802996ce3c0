#include "cerebellum/evaluate/figures.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace cerebellum {
namespace {

TEST(Figures, are_means_over_positions_with_errors_clustered_by_window) {
    const std::vector<WindowScore> windows = {{10, 1.0, 30.0, 28.0, 9}, {10, 3.0, 34.0, 30.0, 7}};
    const auto figures = summarize(windows);
    EXPECT_DOUBLE_EQ(figures.tokens, 20.0);
    EXPECT_DOUBLE_EQ(figures.kld.mean, 0.2);
    EXPECT_DOUBLE_EQ(figures.kld.error, 0.1);  // half the difference of two equally long windows' means
    EXPECT_DOUBLE_EQ(figures.nll.mean, 3.2);
    EXPECT_DOUBLE_EQ(figures.delta_nll.mean, 0.3);
    EXPECT_NEAR(figures.delta_nll.error, 0.1, 1e-12);
    EXPECT_DOUBLE_EQ(figures.top1_agree.mean, 0.8);
    EXPECT_DOUBLE_EQ(figures.perplexity, std::exp(3.2));
    EXPECT_NEAR(figures.perplexity_error, std::exp(3.2) * 0.2, 1e-9);
}

TEST(Figures, differences_are_paired) {
    // The windows differ much, the candidates by a constant: the difference is known exactly.
    const std::vector<WindowScore> a = {{10, 1.5, 0, 0, 0}, {10, 90.5, 0, 0, 0}},
                                   b = {{10, 1.0, 0, 0, 0}, {10, 90.0, 0, 0, 0}};
    const auto difference = kld_difference(a, b);
    EXPECT_DOUBLE_EQ(difference.mean, 0.05);
    EXPECT_NEAR(difference.error, 0.0, 1e-12);
}

}  // namespace
}  // namespace cerebellum
