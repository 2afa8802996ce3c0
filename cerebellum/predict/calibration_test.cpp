#include "cerebellum/predict/calibration.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace cerebellum {
namespace {

/// Wholes of recipes whose ratio is sum^slope times `scale`, measured without error.
std::vector<WholePoint> power_law(std::initializer_list<double> sums, double scale, double slope) {
    std::vector<WholePoint> points;
    for (const double sum : sums) points.push_back({sum, {scale * sum * std::pow(sum, slope), 0.0}});
    return points;
}

TEST(Calibration, follows_a_power_law_between_its_points_above_and_below_one) {
    for (const double slope : {-0.2, 0.0, 0.2}) {
        const Calibration calibration(power_law({1.0, 0.01, 0.1, 0.03}, 1.3, slope));
        for (const double sum : {0.011, 0.05, 0.5})
            EXPECT_NEAR(calibration.predict(sum).mean, 1.3 * sum * std::pow(sum, slope), 1e-12) << slope;
        // Two inner points without a residual, and the prior.
        EXPECT_NEAR(calibration.predict(0.05).error, 0.1 * std::sqrt(0.5) * calibration.predict(0.05).mean, 1e-12);
    }
}

TEST(Calibration, keeps_the_nearest_ratio_outside_and_is_less_sure_the_farther_it_is) {
    const Calibration calibration(power_law({0.1, 0.2, 0.4, 0.8}, 2.0, 0.3));
    EXPECT_DOUBLE_EQ(calibration.ratio(0.01), calibration.ratio(0.1));
    EXPECT_DOUBLE_EQ(calibration.ratio(3.0), calibration.ratio(0.8));
    const auto relative = [&](double sum) {
        const auto prediction = calibration.predict(sum);
        return prediction.error / prediction.mean;
    };
    EXPECT_LT(relative(0.3), relative(0.05));
    EXPECT_LT(relative(0.05), relative(0.01));
    EXPECT_LT(relative(1.0), relative(4.0));
}

TEST(Calibration, without_points_is_the_sum_with_an_unknown_error) {
    const Calibration none;
    EXPECT_TRUE(none.empty());
    EXPECT_DOUBLE_EQ(none.predict(0.3).mean, 0.3);
    EXPECT_TRUE(std::isnan(none.predict(0.3).error));
    const std::vector<WholePoint> useless = {{0.0, {0.0, 0.0}}, {0.1, {-0.1, 0.0}}, {std::nan(""), {0.1, 0.0}}};
    EXPECT_TRUE(Calibration(useless).empty());
}

TEST(Calibration, of_a_lossless_recipe_is_zero) {
    EXPECT_DOUBLE_EQ(Calibration(power_law({0.1, 0.2}, 1.5, 0.0)).predict(0.0).mean, 0.0);
}

TEST(Calibration, states_errors_that_hold_for_recipes_that_it_has_not_seen) {
    std::mt19937 random(5);
    std::normal_distribution<double> scatter(0.0, 0.08);
    int inside = 0, all = 0;
    for (int trial = 0; trial < 400; ++trial) {
        const auto measured = [&](double sum) { return 1.4 * std::pow(sum, 1.1) * std::exp(scatter(random)); };
        std::vector<WholePoint> points;
        for (int i = 0; i < 8; ++i) {
            const double sum = 0.01 * std::pow(1.8, i);
            points.push_back({sum, {measured(sum), 0.0}});
        }
        const Calibration calibration(points);
        for (const double sum : {0.015, 0.06, 0.2}) {
            const auto predicted = calibration.predict(sum);
            inside += std::fabs(measured(sum) - predicted.mean) < 2.0 * predicted.error ? 1 : 0;
            ++all;
        }
    }
    EXPECT_GT(inside, 0.88 * all);
    EXPECT_LT(inside, 0.99 * all);
}

TEST(InteractionRatio, is_one_for_what_adds_up_and_has_no_error_where_windows_agree) {
    const std::vector<std::vector<double>> parts = {{1.0, 2.0, 3.0}, {0.5, 1.0, 1.5}};
    const std::vector<double> additive = {1.5, 3.0, 4.5}, half_more = {2.25, 4.5, 6.75}, uneven = {3.0, 3.0, 4.5};
    EXPECT_DOUBLE_EQ(interaction_ratio(additive, parts).mean, 1.0);
    EXPECT_DOUBLE_EQ(interaction_ratio(half_more, parts).mean, 1.5);
    EXPECT_NEAR(interaction_ratio(half_more, parts).error, 0.0, 1e-12);
    EXPECT_GT(interaction_ratio(uneven, parts).error, 0.1);
}

TEST(InteractionRatio, has_an_interval_that_covers_the_truth) {
    std::mt19937 random(7);
    std::normal_distribution<double> noise;
    int inside = 0;
    constexpr int trials = 1000, windows = 40;
    for (int trial = 0; trial < trials; ++trial) {
        std::vector<double> whole(windows);
        std::vector<std::vector<double>> parts(2, std::vector<double>(windows));
        for (std::size_t w = 0; w < windows; ++w) {
            const double difficulty = std::exp(0.5 * noise(random));  // shared by all: it cancels in the ratio
            parts[0][w] = difficulty * (1.0 + 0.1 * noise(random));
            parts[1][w] = difficulty * (2.0 + 0.1 * noise(random));
            whole[w] = 1.2 * difficulty * (3.0 + 0.3 * noise(random));
        }
        const auto ratio = interaction_ratio(whole, parts);
        EXPECT_LT(ratio.error, 0.05);
        inside += std::fabs(ratio.mean - 1.2) < 2.02 * ratio.error ? 1 : 0;
    }
    EXPECT_NEAR(inside, 0.95 * trials, 0.03 * trials);
}

}  // namespace
}  // namespace cerebellum
