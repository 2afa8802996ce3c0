#include "cerebellum/predict/curve.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "cerebellum/core/error.h"

namespace cerebellum {
namespace {

constexpr std::size_t n_windows = 8;

/// A full row, of a tensor without local energy, with these figures per window of ten positions.
Measurement full(const std::string& type, std::vector<double> kld) {
    Measurement m;
    m.tensor = "t";
    m.type = type;
    m.counts.assign(kld.size(), 10.0);
    m.kld = std::move(kld);
    for (auto& value : m.kld) value *= 10.0;
    m.delta_nll = m.kld;
    m.top1_agree = m.counts;
    return m;
}

std::vector<double> around(double mean, double relative_spread, unsigned seed) {
    std::mt19937_64 random(seed);
    std::vector<double> values;
    for (std::size_t w = 0; w < n_windows; ++w)
        values.push_back(mean * (1.0 + relative_spread * std::normal_distribution<double>()(random)));
    return values;
}

Curve curve_of(const std::vector<Measurement>& rows) {
    return fit_curves(rows).at("t");
}

const CurvePoint& point_of(const Curve& curve, const std::string& type) {
    return *std::ranges::find(curve.points, type, [](const CurvePoint& p) { return p.damage.type; });
}

TEST(Curves, leave_figures_alone_that_are_in_order) {
    const auto curve = curve_of(
        {full("q2_K", around(0.5, 0.1, 1)), full("q4_K", around(0.05, 0.1, 2)), full("q6_K", around(0.002, 0.1, 3))});
    for (const auto& point : curve.points) {
        EXPECT_TRUE(point.on_curve);
        EXPECT_DOUBLE_EQ(point.kld, point.damage.kld);
        EXPECT_LT(point.band.lower, point.kld);
        EXPECT_GT(point.band.upper, point.kld);
    }
    EXPECT_TRUE(std::ranges::is_sorted(curve.points, {}, &CurvePoint::bits));
}

TEST(Curves, pool_what_only_noise_has_put_out_of_order) {
    int pooled = 0;
    for (unsigned seed = 1; seed < 100; seed += 2) {
        // Much the same damage, between windows far apart.
        const auto curve = curve_of({full("q5_0", around(0.010, 0.5, seed)), full("q6_K", around(0.010, 0.5, seed + 1)),
                                     full("q2_K", around(0.2, 0.1, 3))});
        const auto &five = point_of(curve, "q5_0"), &six = point_of(curve, "q6_K");
        if (five.damage.kld >= six.damage.kld || !six.on_curve) continue;
        EXPECT_DOUBLE_EQ(five.kld, six.kld);
        EXPECT_GT(five.kld, five.damage.kld);
        EXPECT_LT(five.kld, six.damage.kld);
        ++pooled;
    }
    EXPECT_GT(pooled, 10);
}

TEST(Curves, keep_a_type_that_is_really_worse_than_a_smaller_one) {
    // As where the weights sit on Q4_1's grid: the figure of the larger type must not be made better by its neighbour.
    const auto curve = curve_of({full("q4_1", around(0.0002, 0.1, 1)), full("q5_0", around(0.01, 0.1, 2)),
                                 full("q8_0", around(0.0001, 0.1, 3))});
    const auto &four = point_of(curve, "q4_1"), &five = point_of(curve, "q5_0");
    EXPECT_FALSE(five.on_curve);
    EXPECT_DOUBLE_EQ(five.kld, five.damage.kld);
    EXPECT_DOUBLE_EQ(four.kld, four.damage.kld);
}

TEST(Curves, of_equal_bits_only_the_better_type_is_on_the_curve) {
    const auto curve = curve_of({full("q4_0", around(0.03, 0.2, 1)), full("iq4_nl", around(0.02, 0.2, 2)),
                                 full("q4_K", around(0.021, 0.2, 3))});
    const auto best = std::ranges::min_element(curve.points, {}, [](const CurvePoint& p) { return p.damage.kld; });
    for (const auto& point : curve.points) {
        EXPECT_EQ(point.on_curve, &point == &*best);
        EXPECT_DOUBLE_EQ(point.kld, point.damage.kld);  // nothing is averaged: the allocator may take any of them
    }
}

TEST(Curves, are_monotone_whatever_the_figures) {
    const std::vector<std::string> types = {"iq1_s",  "iq2_xs", "q2_K", "iq3_xxs", "q3_K",
                                            "iq4_xs", "q4_K",   "q5_K", "q6_K",    "q8_0"};
    std::mt19937_64 random(1);
    for (unsigned trial = 0; trial < 200; ++trial) {
        std::vector<Measurement> rows;
        for (const auto& type : types)
            rows.push_back(full(type, around(std::exp(std::normal_distribution<double>()(random)), 0.6,
                                             static_cast<unsigned>(random()))));
        for (auto& row : rows)
            for (auto& value : row.kld) value = std::fabs(value);
        double before = std::numeric_limits<double>::infinity();
        double lower = before, upper = before;
        for (const auto& point : curve_of(rows).points) {
            if (!point.on_curve) continue;
            EXPECT_LE(point.kld, before);
            EXPECT_LE(point.band.lower, lower);
            EXPECT_LE(point.band.upper, upper);
            EXPECT_LE(point.band.lower, point.kld);
            EXPECT_GE(point.band.upper, point.kld);
            before = point.kld, lower = point.band.lower, upper = point.band.upper;
        }
    }
}

TEST(Curves, bring_figures_nearer_to_a_monotone_truth) {
    // Two neighbours that differ little and are measured badly.
    double raw = 0.0, fitted = 0.0;
    for (unsigned trial = 0; trial < 300; ++trial) {
        const auto curve =
            curve_of({full("q5_K", around(0.0102, 0.5, 2 * trial)), full("q6_K", around(0.0100, 0.5, 2 * trial + 1))});
        for (const auto& [type, truth] : {std::pair{"q5_K", 0.0102}, std::pair{"q6_K", 0.0100}}) {
            const auto& point = point_of(curve, type);
            raw += std::pow(point.damage.kld - truth, 2);
            fitted += std::pow(point.kld - truth, 2);
        }
    }
    EXPECT_LT(fitted, 0.97 * raw);
}

TEST(Curves, with_one_window_stand_as_measured) {
    const auto curve = curve_of({full("q5_0", {0.010}), full("q6_K", {0.011})});
    EXPECT_DOUBLE_EQ(point_of(curve, "q6_K").kld, 0.011);
    EXPECT_TRUE(std::isinf(point_of(curve, "q6_K").band.upper));
}

TEST(Curves, of_unknown_types_are_refused) {
    EXPECT_THROW(fit_curves(std::vector<Measurement>{full("q4_2", {0.1, 0.1})}), Error);
}

/// A tensor whose damage is energy times a gain that differs between windows, measured on all windows in the fast tier
/// and on half of them in full.
struct Synthetic {
    std::vector<Measurement> rows;
    double truth = 0.0;
};
Synthetic synthetic(unsigned seed, double gain_noise) {
    std::mt19937_64 random(seed);
    std::normal_distribution<double> normal;
    Measurement fast, full;
    fast.tensor = full.tensor = "t";
    fast.type = full.type = "q4_0";
    fast.tier = Tier::fast;
    for (std::size_t w = 0; w < 16; ++w) {
        const double energy = 0.01 * (1.0 + 0.3 * normal(random));
        fast.local_energy.push_back(100.0 * energy);
        fast.local_counts.push_back(100.0);
        if (w >= 8) continue;
        full.local_energy.push_back(100.0 * energy);
        full.local_counts.push_back(100.0);
        full.kld.push_back(100.0 * energy * 3.0 * (1.0 + gain_noise * normal(random)));
        full.counts.push_back(100.0);
    }
    return {{fast, full}, 0.03};
}

TEST(DamageIntervals, of_full_figures_on_half_of_the_windows_cover_the_truth) {
    for (const double gain_noise : {0.05, 0.3}) {
        int covered = 0;
        constexpr unsigned repeats = 2000;
        double width = 0.0, plain = 0.0;
        for (unsigned i = 0; i < repeats; ++i) {
            const auto data = synthetic(i, gain_noise);
            const auto damage = predict_damage(data.rows).at("t").front();
            const auto interval = damage_interval(damage);
            covered += interval.lower <= data.truth && data.truth <= interval.upper;
            width += damage.error;
            plain += clustered_mean(data.rows[1].kld, data.rows[1].counts).error;
        }
        EXPECT_GT(covered / static_cast<double>(repeats), 0.92) << gain_noise;
        EXPECT_LT(covered / static_cast<double>(repeats), 0.98) << gain_noise;
        EXPECT_LT(width, plain) << "the windows that only the fast tier saw should help";
    }
}

TEST(DamageIntervals, of_fast_figures_grow_with_the_distance_from_the_anchors) {
    auto data = synthetic(1, 0.1).rows;
    for (const double factor : {0.001, 1.5}) {
        auto other = data.front();
        other.type = factor < 1.0 ? "q8_0" : "iq3_xxs";
        for (auto& energy : other.local_energy) energy *= factor;
        data.push_back(other);
    }
    const auto curve = curve_of(data);
    const auto relative = [&](const std::string& type) {
        const auto& damage = point_of(curve, type).damage;
        return damage.error / damage.kld;
    };
    EXPECT_GT(relative("iq3_xxs"), gain_spread);
    EXPECT_GT(relative("q8_0"), 1.5 * relative("iq3_xxs"));
    EXPECT_GT(point_of(curve, "q8_0").band.lower, 0.0);
}

}  // namespace
}  // namespace cerebellum
