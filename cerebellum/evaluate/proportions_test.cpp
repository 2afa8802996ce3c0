#include "cerebellum/evaluate/proportions.h"

#include <gtest/gtest.h>

namespace cerebellum {
namespace {

TEST(Wilson, agrees_with_published_values) {
    // Newcombe (1998), Statistics in Medicine 17, Table I, method 3: 81/263, 15/148, 0/20, 1/29.
    const auto near = [](Interval interval, double low, double high) {
        EXPECT_NEAR(interval.lower, low, 5e-5);
        EXPECT_NEAR(interval.upper, high, 5e-5);
    };
    near(wilson_interval(81, 263), 0.2553, 0.3662);
    near(wilson_interval(15, 148), 0.0624, 0.1605);
    near(wilson_interval(0, 20), 0.0, 0.1611);
    near(wilson_interval(1, 29), 0.0061, 0.1718);
    EXPECT_EQ(wilson_interval(0, 0).upper, 1.0);
}

TEST(Mcnemar, is_the_exact_binomial_test) {
    EXPECT_DOUBLE_EQ(mcnemar_p(0, 0), 1.0);
    EXPECT_DOUBLE_EQ(mcnemar_p(5, 5), 1.0);
    EXPECT_NEAR(mcnemar_p(0, 6), 2.0 / 64.0, 1e-12);
    EXPECT_NEAR(mcnemar_p(1, 7), 2.0 * 9.0 / 256.0, 1e-12);
    EXPECT_NEAR(mcnemar_p(7, 1), mcnemar_p(1, 7), 1e-15);
    EXPECT_NEAR(mcnemar_p(400, 500), 0.000960, 5e-5);
}

}  // namespace
}  // namespace cerebellum
