#include "cerebellum/pipeline/competition.h"

#include <gtest/gtest.h>

namespace cerebellum {
namespace {

/// Measured to the end of the model on two windows of ten positions.
Measurement measured(const std::string& type, double kld) {
    Measurement m;
    m.tensor = "t";
    m.type = type;
    m.tier = Tier::full;
    m.counts = {10, 10};
    m.kld = {9 * kld, 11 * kld};
    m.delta_nll = m.top1_agree = {0, 0};
    return m;
}

/// Wholes do what their parts add up to.
Calibration plain() {
    const WholePoint points[] = {{0.01, {0.01, 1e-4}}, {1.0, {1.0, 1e-2}}};
    return Calibration(points);
}

std::optional<MixPrediction> predict(ggml_type type) {
    const Measurement rows[] = {measured("q6_K", 0.001), measured("q4_K", 0.01), measured("q2_K", 0.2),
                                measured("iq2_xs", 0.3)};
    return MixPredictor(rows, plain()).predict({{"t", Encoding(type)}});
}

TEST(MixPredictor, takes_the_figure_of_a_measured_type) {
    const auto prediction = predict(GGML_TYPE_Q4_K);
    ASSERT_TRUE(prediction);
    EXPECT_FALSE(prediction->at_least);
    EXPECT_NEAR(prediction->kld.mean, 0.01, 1e-9);
}

TEST(MixPredictor, bounds_a_codebook_type_by_the_next_one_that_is_a_fourth_larger) {
    // 1.56 and 2.06 bits: a fourth more is less than IQ2_XS takes (2.31), and than Q2_K takes (2.63).
    for (const auto& [type, least] : {std::pair{GGML_TYPE_IQ1_S, 0.3}, std::pair{GGML_TYPE_IQ2_XXS, 0.2}}) {
        const auto prediction = predict(type);
        ASSERT_TRUE(prediction);
        EXPECT_TRUE(prediction->at_least);
        EXPECT_NEAR(prediction->kld.mean, least, 1e-9);
    }
}

TEST(MixPredictor, knows_nothing_of_a_type_without_a_codebook_that_was_not_measured) {
    // The source may lie on its grid.
    EXPECT_FALSE(predict(GGML_TYPE_Q3_K));
    EXPECT_FALSE(predict(GGML_TYPE_Q4_0));
}

}  // namespace
}  // namespace cerebellum
