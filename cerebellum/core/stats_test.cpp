// What docs/statistics.md states, checked on synthetic data with known truth.

#include "cerebellum/core/stats.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <random>

namespace cerebellum {
namespace {

using Random = std::mt19937_64;

double normal(Random& random) {
    return std::normal_distribution<double>()(random);
}

/// Windows of text: a mean per position that differs between windows, in unequal numbers of positions.
struct Windows {
    std::vector<double> sums, counts;
};
Windows draw(Random& random, std::size_t n, double mean, double spread, bool skewed) {
    Windows windows;
    for (std::size_t w = 0; w < n; ++w) {
        const double count = 100.0 + static_cast<double>(random() % 50);
        // The gamma distribution with shape 4 has a coefficient of variation of 1/2 and a skewness of 1.
        const double level =
            skewed ? mean * std::gamma_distribution<double>(4.0, 0.25)(random) : mean + spread * normal(random);
        windows.sums.push_back(count * level);
        windows.counts.push_back(count);
    }
    return windows;
}

double coverage(std::size_t windows, bool skewed) {
    Random random(7);
    constexpr int repeats = 4000;
    int covered = 0;
    for (int i = 0; i < repeats; ++i) {
        const auto sample = draw(random, windows, 3.0, 1.0, skewed);
        const auto interval = confidence_interval(clustered_mean(sample.sums, sample.counts));
        covered += interval.lower <= 3.0 && 3.0 <= interval.upper;
    }
    return static_cast<double>(covered) / repeats;
}

TEST(Intervals, cover_the_truth_as_often_as_they_say) {
    for (const std::size_t windows : {2U, 4U, 8U, 32U}) {
        EXPECT_GT(coverage(windows, false), 0.94) << windows;
        EXPECT_LT(coverage(windows, false), 0.96) << windows;
    }
}

TEST(Intervals, still_do_where_windows_are_skewed) {
    for (const std::size_t windows : {4U, 8U, 16U, 32U}) {
        EXPECT_GT(coverage(windows, true), 0.92) << windows;
        EXPECT_LT(coverage(windows, true), 0.98) << windows;
    }
}

TEST(Intervals, would_be_too_short_with_the_normal_distribution_s_quantile) {
    Random random(7);
    int covered = 0;
    for (int i = 0; i < 4000; ++i) {
        const auto sample = draw(random, 4, 3.0, 1.0, false);
        auto estimate = clustered_mean(sample.sums, sample.counts);
        estimate.dof = std::numeric_limits<double>::infinity();
        const auto interval = confidence_interval(estimate);
        covered += interval.lower <= 3.0 && 3.0 <= interval.upper;
    }
    EXPECT_LT(covered / 4000.0, 0.90);
}

TEST(Intervals, without_an_error_have_no_limits) {
    const auto interval = confidence_interval(clustered_mean(std::vector{1.0}, std::vector{1.0}));
    EXPECT_TRUE(std::isinf(interval.lower) && std::isinf(interval.upper));
}

TEST(StudentT, has_the_quantiles_of_the_tables) {
    EXPECT_NEAR(t_quantile(0.975, 3), 3.182446, 1e-6);
    EXPECT_NEAR(t_quantile(0.95, 7), 1.894579, 1e-6);
    EXPECT_NEAR(t_quantile(0.975, std::numeric_limits<double>::infinity()), 1.959964, 1e-6);
    EXPECT_NEAR(t_cumulative(t_quantile(0.01, 2.5), 2.5), 0.01, 1e-12);
    EXPECT_EQ(t_cumulative(-std::numeric_limits<double>::infinity(), 4), 0.0);
}

RC_GTEST_PROP(ClusteredSums, merged_parts_are_the_whole, ()) {
    const auto sums = *rc::gen::container<std::vector<double>>(
        12, rc::gen::map(rc::gen::inRange(-1000, 1000), [](int i) { return 1e6 + 0.37 * i; }));
    const auto split = *rc::gen::inRange<std::size_t>(0, 13);
    std::vector<double> counts;
    for (std::size_t w = 0; w < sums.size(); ++w) counts.push_back(50.0 + static_cast<double>(w % 5));
    ClusteredSums a, b;
    for (std::size_t w = 0; w < sums.size(); ++w) (w < split ? a : b).add(sums[w], counts[w]);
    a.merge(b);
    // The definition, in two passes.
    double total = 0.0, count = 0.0, squares = 0.0;
    for (std::size_t w = 0; w < sums.size(); ++w) total += sums[w], count += counts[w];
    for (std::size_t w = 0; w < sums.size(); ++w) squares += std::pow(sums[w] - total / count * counts[w], 2);
    const double error = std::sqrt(12.0 / 11.0 * squares) / count;
    RC_ASSERT(std::fabs(a.mean().mean - total / count) < 1e-9 * total / count);
    RC_ASSERT(std::fabs(a.mean().error - error) < 1e-6 * error + 1e-9);
    RC_ASSERT(a.mean().dof == 11.0);
}

TEST(PairedDifference, leaves_out_what_windows_have_in_common) {
    Random random(3);
    std::vector<double> a, b, counts(8, 100.0);
    for (std::size_t w = 0; w < counts.size(); ++w) {
        const double hard = 1000.0 * normal(random);
        a.push_back(hard + 10.0 + normal(random));
        b.push_back(hard + normal(random));
    }
    const auto difference = paired_difference(a, b, counts);
    EXPECT_NEAR(difference.mean, 0.1, 0.02);
    EXPECT_LT(difference.error, 0.01);
    EXPECT_GT(clustered_mean(a, counts).error, 1.0);
    EXPECT_LT(p_greater(difference), 1e-4);
    EXPECT_NEAR(p_greater(difference) + p_less(difference), 1.0, 1e-12);
}

TEST(PValues, are_uniform_where_nothing_is_there) {
    Random random(11);
    std::vector<int> bins(10);
    constexpr int repeats = 5000;
    for (int i = 0; i < repeats; ++i) {
        const auto sample = draw(random, 5, 0.0, 1.0, false);
        ++bins[static_cast<std::size_t>(std::min(9.0, 10.0 * p_greater(clustered_mean(sample.sums, sample.counts))))];
    }
    double chi_square = 0.0;
    for (const int n : bins) chi_square += std::pow(n - repeats / 10.0, 2) / (repeats / 10.0);
    EXPECT_LT(chi_square, 27.9);  // 0.1 % of the distribution with 9 degrees of freedom lie above
}

TEST(PValues, of_what_has_no_error_or_an_unknown_one) {
    EXPECT_EQ(p_greater({1.0, 0.0, 3.0}), 0.0);
    EXPECT_EQ(p_greater({0.0, 0.0, 3.0}), 1.0);
    EXPECT_EQ(p_less({-1.0, 0.0, 3.0}), 0.0);
    EXPECT_EQ(p_greater({1.0, std::nan(""), 0.0}), 1.0);
}

TEST(Adjusting, gives_the_values_of_r_s_p_adjust) {
    const std::vector<double> p = {0.01, 0.04, 0.03, 0.005, std::nan("")};
    const std::vector<double> holm = {0.04, 0.09, 0.09, 0.025, 1.0}, bh = {0.025, 0.05, 0.05, 0.025, 1.0};
    for (std::size_t i = 0; i < p.size(); ++i) {
        EXPECT_NEAR(adjust_holm(p)[i], holm[i], 1e-12) << i;
        EXPECT_NEAR(adjust_benjamini_hochberg(p)[i], bh[i], 1e-12) << i;
    }
}

struct Errors {
    double family = 0.0;     // share of families with a false claim
    double discovery = 0.0;  // mean share of false ones among the claims
    double power = 0.0;      // share of true effects that are claimed
};

/// Forty tests on eight windows, ten of them of something real; windows are partly common to all tests.
Errors errors_of(std::vector<double> (*adjust)(std::span<const std::vector<double>>), double normality) {
    Random random(5);
    constexpr int families = 400;
    constexpr std::size_t tests = 40, real = 10, windows = 8;
    Errors errors;
    for (int f = 0; f < families; ++f) {
        std::vector<double> common(windows);
        for (auto& value : common) value = normal(random);
        std::vector<std::vector<double>> rows(tests);
        for (std::size_t t = 0; t < tests; ++t)
            for (std::size_t w = 0; w < windows; ++w) {
                const double noise = 0.7 * common[w] + 0.7 * normal(random);
                // Without normality: a random sign of a constant.
                rows[t].push_back((t < real ? 3.0 : 0.0) +
                                  (normality > 0.5 ? noise : std::copysign(1.0, noise) + 0.01 * normal(random)));
            }
        const auto p = adjust(rows);
        double claims = 0.0, wrong = 0.0;
        for (std::size_t t = 0; t < tests; ++t) {
            claims += p[t] <= 0.05;
            wrong += p[t] <= 0.05 && t >= real;
        }
        errors.family += wrong > 0.0;
        errors.discovery += claims > 0.0 ? wrong / claims : 0.0;
        errors.power += (claims - wrong) / real;
    }
    for (auto* value : {&errors.family, &errors.discovery, &errors.power}) *value /= families;
    return errors;
}

std::vector<double> t_tests(std::span<const std::vector<double>> rows) {
    std::vector<double> p;
    for (const auto& row : rows) p.push_back(p_greater(clustered_mean(row, std::vector<double>(row.size(), 1.0))));
    return p;
}

TEST(Adjusting, holds_the_stated_error_rates) {
    const auto unadjusted = errors_of([](std::span<const std::vector<double>> rows) { return t_tests(rows); }, 1.0);
    EXPECT_GT(unadjusted.family, 0.4);
    const auto holm =
        errors_of([](std::span<const std::vector<double>> rows) { return adjust_holm(t_tests(rows)); }, 1.0);
    EXPECT_LT(holm.family, 0.05 + 0.025);  // two standard errors of the simulation
    EXPECT_GT(holm.power, 0.5);
    const auto bh = errors_of(
        [](std::span<const std::vector<double>> rows) { return adjust_benjamini_hochberg(t_tests(rows)); }, 1.0);
    EXPECT_LT(bh.discovery, 0.05);
    EXPECT_GT(bh.power, holm.power);
    const auto flips = errors_of(adjust_by_sign_flips, 1.0);
    EXPECT_LT(flips.family, 0.05 + 0.025);
    EXPECT_GT(flips.power, 0.8);
    EXPECT_LT(errors_of(adjust_by_sign_flips, 0.0).family, 0.05 + 0.025);
}

TEST(Adjusting, by_sign_flips_is_the_exact_test_where_there_is_one_row) {
    // 2, 1 and 3 of one sign: one of eight patterns has as great a t. With −1 in it, two of eight have.
    EXPECT_NEAR(adjust_by_sign_flips(std::vector<std::vector<double>>{{2.0, 1.0, 3.0}})[0], 1.0 / 8.0, 1e-12);
    EXPECT_NEAR(adjust_by_sign_flips(std::vector<std::vector<double>>{{2.0, -1.0, 3.0}})[0], 2.0 / 8.0, 1e-12);
    EXPECT_EQ(adjust_by_sign_flips(std::vector<std::vector<double>>{{1.0}})[0], 1.0);
}

TEST(ExpectedLoss, is_what_a_simulation_loses) {
    Random random(9);
    for (const double gap : {0.0, 0.5, 1.5}) {
        double lost = 0.0;
        constexpr int repeats = 200000;
        std::student_t_distribution<double> t(5.0);
        for (int i = 0; i < repeats; ++i) lost += std::max(0.0, -(gap + 0.7 * t(random)));
        EXPECT_NEAR(expected_loss({gap, 0.7, 5.0}), lost / repeats, 0.01) << gap;
    }
    EXPECT_EQ(expected_loss({-2.0, 0.0, 5.0}), 2.0);
    EXPECT_TRUE(std::isinf(expected_loss({2.0, 1.0, 1.0})));
}

RC_GTEST_PROP(AntitonicFit, is_the_min_max_formula, ()) {
    const auto numbers = rc::gen::container<std::vector<int>>(7, rc::gen::inRange(-20, 20));
    const auto values = *numbers;
    const auto weights = *rc::gen::container<std::vector<int>>(7, rc::gen::inRange(1, 9));
    const std::vector<double> y(values.begin(), values.end()), w(weights.begin(), weights.end());
    const auto fit = antitonic_fit(y, w);
    RC_ASSERT(fit.size() == y.size());
    // Barlow et al. (1972): the least over beginnings of the greatest mean over ends.
    for (std::size_t i = 0; i < y.size(); ++i) {
        double least = std::numeric_limits<double>::infinity();
        for (std::size_t a = 0; a <= i; ++a) {
            double greatest = -std::numeric_limits<double>::infinity();
            for (std::size_t b = i; b < y.size(); ++b) {
                double sum = 0.0, weight = 0.0;
                for (std::size_t k = a; k <= b; ++k) sum += w[k] * y[k], weight += w[k];
                greatest = std::max(greatest, sum / weight);
            }
            least = std::min(least, greatest);
        }
        RC_ASSERT(std::fabs(fit[i] - least) < 1e-9);
    }
}

}  // namespace
}  // namespace cerebellum
