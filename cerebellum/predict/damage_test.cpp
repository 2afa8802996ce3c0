#include "cerebellum/predict/damage.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "cerebellum/core/error.h"

namespace cerebellum {
namespace {

const std::string tensor = "t";

/// Two windows of ten positions with this mean.
Measurement fast(const std::string& type, double energy) {
    Measurement m;
    m.tensor = tensor;
    m.type = type;
    m.tier = Tier::fast;
    m.local_counts = {10, 10};
    m.local_energy = {9 * energy, 11 * energy};
    return m;
}

/// An anchor that saw the same windows, or, without an energy, a tensor that has none.
Measurement full(const std::string& type, double kld, double energy = 0.0) {
    Measurement m;
    m.tensor = tensor;
    m.type = type;
    m.tier = Tier::full;
    m.counts = {10, 10};
    m.kld = {9 * kld, 11 * kld};
    if (energy > 0.0) {
        m.local_counts = {10, 10};
        m.local_energy = {9 * energy, 11 * energy};
    }
    return m;
}

Damage damage_of(const std::vector<Measurement>& measurements, const std::string& type) {
    const auto all = predict_damage(measurements);
    const auto found = std::ranges::find(all.at("t"), type, &Damage::type);
    return found != all.at("t").end() ? *found : Damage{};
}

TEST(PredictDamage, reproduces_what_was_measured_in_full) {
    const std::vector<Measurement> known = {fast("q2_K", 0.1), full("q2_K", 0.7, 0.1), fast("q4_0", 0.01),
                                            full("q4_0", 0.03, 0.01)};
    EXPECT_NEAR(damage_of(known, "q2_K").kld, 0.7, 1e-12);
    EXPECT_NEAR(damage_of(known, "q4_0").kld, 0.03, 1e-12);
    EXPECT_EQ(damage_of(known, "q4_0").tier, Tier::full);
    EXPECT_NEAR(damage_of(known, "q4_0").error, 0.003, 1e-9);
    EXPECT_DOUBLE_EQ(damage_of({full("q4_0", 0.03)}, "q4_0").kld, 0.03);  // as for embeddings, without a fast figure
}

TEST(PredictDamage, scales_by_the_only_anchor) {
    const std::vector<Measurement> known = {fast("q4_0", 0.01), full("q4_0", 0.03, 0.01), fast("q3_K", 0.02)};
    const auto damage = damage_of(known, "q3_K");
    EXPECT_NEAR(damage.kld, 0.06, 1e-12);
    EXPECT_EQ(damage.tier, Tier::fast);
    EXPECT_GE(damage.error, gain_spread * damage.kld);
}

TEST(PredictDamage, carries_an_anchor_over_to_the_windows_that_it_did_not_see) {
    auto seen = full("q4_0", 0.0);
    seen.counts = seen.local_counts = {10};
    seen.kld = {0.27};
    seen.local_energy = {0.09};  // of the first window: the fast figures' mean is higher, 0.1
    EXPECT_NEAR(damage_of({fast("q4_0", 0.01), seen}, "q4_0").kld, 0.03, 1e-12);
}

TEST(PredictDamage, between_anchors_lies_between_them_and_grows_with_the_energy) {
    const std::vector<Measurement> anchors = {fast("q2_K", 0.16), full("q2_K", 0.64, 0.16), fast("q4_0", 0.01),
                                              full("q4_0", 0.01, 0.01)};
    double before = 0.01;
    for (const double energy : {0.011, 0.02, 0.04, 0.08, 0.15}) {
        auto known = anchors;
        known.push_back(fast("q3_K", energy));
        const double kld = damage_of(known, "q3_K").kld;
        EXPECT_GT(kld, before);
        EXPECT_LT(kld, 0.64);
        before = kld;
    }
    auto known = anchors;
    known.push_back(fast("q3_K", 0.04));  // the geometric mean of the anchors: gain 2 between 1 and 4
    EXPECT_NEAR(damage_of(known, "q3_K").kld, 0.08, 1e-9);
}

TEST(PredictDamage, takes_the_gain_of_the_anchors_of_its_own_rounding) {
    const std::vector<Measurement> known = {fast("q2_K", 0.1),          full("q2_K", 0.4, 0.1),
                                            fast("q2_K+feedback", 0.1), full("q2_K+feedback", 0.1, 0.1),
                                            fast("q3_K", 0.1),          fast("q3_K+feedback", 0.1)};
    EXPECT_NEAR(damage_of(known, "q3_K").kld, 0.4, 1e-9);
    EXPECT_NEAR(damage_of(known, "q3_K+feedback").kld, 0.1, 1e-9);
}

TEST(PredictDamage, without_any_anchor_says_so) {
    EXPECT_THROW(predict_damage(std::vector<Measurement>{fast("q3_K", 0.1)}), Error);
    EXPECT_EQ(damage_of({fast("q8_0", 0.0)}, "q8_0").kld, 0.0);
}

}  // namespace
}  // namespace cerebellum
