#include "cerebellum/core/time_left.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

namespace cerebellum {
namespace {

/// Steps through a stage of `whole_s` seconds whose work is done by `share(seconds)`; what is left as said at `at_s`.
std::optional<double> said_at(double at_s, double step_s, const std::function<double(double)>& share) {
    TimeLeft left;
    std::optional<double> said;
    for (double t = step_s; t <= at_s + 1e-9; t += step_s) said = left.update(t, share(t));
    return said;
}

TEST(TimeLeft, is_right_from_two_percent_on_at_a_constant_rate) {
    constexpr double whole_s = 600.0;
    for (const double part : {0.02, 0.05, 0.3, 0.9}) {
        const auto said = said_at(part * whole_s, 0.5, [&](double t) { return t / whole_s; });
        ASSERT_TRUE(said) << part;
        EXPECT_NEAR(*said, (1.0 - part) * whole_s, 0.02 * whole_s) << part;
    }
}

TEST(TimeLeft, says_nothing_before_there_is_something_to_go_by) {
    TimeLeft left;
    EXPECT_FALSE(left.update(1.0, 0.01));
    EXPECT_FALSE(left.update(1.0, 0.0));
    EXPECT_TRUE(left.update(1.5, 0.02));
}

TEST(TimeLeft, says_nothing_of_a_first_piece_of_next_to_no_work) {
    // An embedding that is only looked up took 1 of 10^15 operations, ten seconds after a run was taken up again:
    // "28089910 h left".
    TimeLeft left;
    EXPECT_FALSE(left.update(10.0, 1e-15));
    EXPECT_FALSE(left.update(60.0, 1e-9));
    const auto said = left.update(100.0, 0.05);
    ASSERT_TRUE(said);
    EXPECT_NEAR(*said, 1900.0, 1.0);
}

TEST(TimeLeft, speaks_after_some_seconds_of_a_long_stage) {
    TimeLeft left;
    EXPECT_FALSE(left.update(4.0, 0.002));
    ASSERT_TRUE(left.update(6.0, 0.003));
}

TEST(TimeLeft, comes_to_a_new_rate_without_jumping) {
    // Half as fast from 100 s on, when 50 % are done.
    const auto share = [](double t) { return t < 100.0 ? t / 200.0 : 0.5 + (t - 100.0) / 400.0; };
    TimeLeft left;
    double before = 0.0;
    for (double t = 0.5; t <= 290.0; t += 0.5) {
        const auto said = left.update(t, share(t));
        if (!said) continue;
        if (before > 0.0) {
            EXPECT_LT(std::fabs(*said - before), 3.0) << t;
        }
        before = *said;
    }
    EXPECT_NEAR(before, 10.0, 5.0);
}

TEST(TimeLeft, follows_a_corrected_share_within_a_fiftieth_of_the_whole) {
    // A stage finds out at 50 s that it is not half done, but a tenth.
    TimeLeft left;
    for (double t = 1.0; t <= 50.0; t += 1.0) left.update(t, t / 100.0);
    std::optional<double> said;
    for (double t = 51.0; t <= 75.0; t += 1.0) said = left.update(t, t / 500.0);
    ASSERT_TRUE(said);
    EXPECT_NEAR(*said, 425.0, 0.1 * 425.0);
}

TEST(TimeLeft, is_never_negative_and_nothing_at_the_end) {
    TimeLeft left;
    left.update(10.0, 0.5);
    const auto late = left.update(30.0, 0.999);
    ASSERT_TRUE(late);
    EXPECT_GE(*late, 0.0);
    EXPECT_EQ(left.update(31.0, 1.0), 0.0);
}

TEST(FormatLeft, is_nothing_that_nobody_would_wait_for) {
    EXPECT_EQ(format_left(59.0), "59 s");
    EXPECT_EQ(format_left(200.0), "3 min 20 s");
    EXPECT_EQ(format_left(4000.0), "1 h 6 min");
    EXPECT_EQ(format_left(1e11), "more than 30 days");
    EXPECT_EQ(format_left(INFINITY), "more than 30 days");
    EXPECT_EQ(format_left(std::nan("")), "more than 30 days");
}

}  // namespace
}  // namespace cerebellum
