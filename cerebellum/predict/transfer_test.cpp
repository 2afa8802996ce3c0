#include "cerebellum/predict/transfer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <tuple>

#include "cerebellum/core/quant_type.h"

namespace cerebellum {
namespace {

TEST(ForeignType, knows_ggml_and_its_fork) {
    EXPECT_EQ(parse_foreign_type("Q2_K")->type, GGML_TYPE_Q2_K);
    EXPECT_EQ(parse_foreign_type("q2_k_r4")->type, GGML_TYPE_Q2_K);
    EXPECT_EQ(parse_foreign_type("iq4_xs_r8")->type, GGML_TYPE_IQ4_XS);
    EXPECT_EQ(parse_foreign_type("iq1_kt")->type, std::nullopt);
    EXPECT_EQ(parse_foreign_type("iq1_kt")->bits_per_weight, 1.75);
    EXPECT_EQ(parse_foreign_type("iq2_k_r4")->bits_per_weight, 2.375);
    // This one is another type than what its name says.
    EXPECT_EQ(parse_foreign_type("iq1_s_r4")->type, std::nullopt);
    EXPECT_TRUE(parse_foreign_type("iq2_bn")->ternary);
    EXPECT_FALSE(parse_foreign_type("q9_K").has_value());
    EXPECT_FALSE(parse_foreign_type("_r4").has_value());
}

TEST(RoundingError, falls_with_size_as_theory_has_it) {
    EXPECT_EQ(rounding_error(GGML_TYPE_F32), 0.0);
    // 11 significant bits, rounded to nearest: relative errors of up to 2^-11, uniform on a logarithmic scale.
    EXPECT_NEAR(std::log2(rounding_error(GGML_TYPE_F16)), -24.0, 1.0);
    // Uniform steps of 1/127 of the largest of 32 normal weights, about 2.1 to 2.8: step² / 12.
    EXPECT_NEAR(std::log(rounding_error(GGML_TYPE_Q8_0)), std::log(2.4 * 2.4 / 127 / 127 / 12), 0.4);
    double last = 0.0;
    for (const auto type : {GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q6_K, GGML_TYPE_Q5_K, GGML_TYPE_Q4_K,
                            GGML_TYPE_Q3_K, GGML_TYPE_Q2_K, GGML_TYPE_IQ2_XXS, GGML_TYPE_IQ1_S}) {
        EXPECT_GT(rounding_error(type), last) << type_name(type);
        last = rounding_error(type);
    }
    EXPECT_LT(last, 1.0);
}

TEST(RoundingError, of_a_type_of_the_fork_lies_between_its_neighbours) {
    const auto iq2_k = rounding_error(*parse_foreign_type("iq2_k"));
    EXPECT_LT(iq2_k, rounding_error(GGML_TYPE_IQ2_XXS));
    EXPECT_GT(iq2_k, rounding_error(GGML_TYPE_Q3_K));
    EXPECT_EQ(rounding_error(*parse_foreign_type("q2_k_r4")), rounding_error(GGML_TYPE_Q2_K));
}

TEST(Sensitivity, is_exact_where_it_was_measured_and_proportional_elsewhere) {
    const Sensitivity one({{std::log(0.1), 3.0}});
    EXPECT_NEAR(one.damage(0.1, 0.0), 0.3, 1e-12);
    EXPECT_NEAR(one.damage(0.01, 0.0), 0.03, 1e-12);
    EXPECT_NEAR(one.damage(0.01, 0.1), -0.27, 1e-12);
    EXPECT_EQ(one.damage(0.0, 0.0), 0.0);
    const Sensitivity two({{std::log(0.01), 1.0}, {std::log(0.1), 3.0}});
    EXPECT_NEAR(two.at(std::sqrt(0.001)), 2.0, 1e-12);
    EXPECT_NEAR(two.at(0.5), 3.0, 1e-12);
    EXPECT_NEAR(two.at(0.001), 1.0, 1e-12);
    const Sensitivity twice({{std::log(0.1), 2.0}, {std::log(0.1), 4.0}});
    EXPECT_NEAR(twice.at(0.1), 3.0, 1e-12);
}

DamageTable table_of(Metric metric, const std::vector<std::tuple<std::string, std::string, double>>& rows) {
    DamageTable table;
    table.metric = metric;
    for (const auto& [tensor, type, value] : rows) {
        DamageRow row;
        row.tensor = tensor;
        row.type = type;
        (metric == Metric::kld ? row.kld : row.delta_nll) = value;
        table.rows.push_back(row);
    }
    return table;
}

TEST(Sensitivities, undo_the_baseline) {
    // A tensor that loses s per unit of rounding error, measured from a rounded baseline.
    constexpr double s = 2.5;
    const double crushed = rounding_error(GGML_TYPE_Q2_K), base = rounding_error(GGML_TYPE_Q4_K);
    const std::map<std::string, ggml_type> baseline = {{"a", GGML_TYPE_Q4_K}};
    const auto by_nll = sensitivities(table_of(Metric::nll, {{"a", "q2_K", s * (crushed - base)}}), baseline);
    EXPECT_NEAR(by_nll.at("a").at(crushed), s, 1e-12);
    const auto by_kld = sensitivities(table_of(Metric::kld, {{"a", "q2_K", s * (crushed + base)}}), baseline);
    EXPECT_NEAR(by_kld.at("a").at(crushed), s, 1e-12);
    const auto from_source = sensitivities(table_of(Metric::kld, {{"a", "q2_K", s * crushed}}), {});
    EXPECT_NEAR(from_source.at("a").at(crushed), s, 1e-12);
}

TEST(Sensitivities, leave_out_what_says_nothing_and_take_noise_for_zero) {
    std::map<std::string, double> bits;
    const auto result = sensitivities(
        table_of(
            Metric::nll,
            {{"a", "q2_K", -0.3}, {"b", "iq2_bn", 5.0}, {"c", "q4_K", 0.0}, {"d", "q6_K", 0.1}, {"d", "iq1_m", 0.4}}),
        {{"c", GGML_TYPE_Q4_K}}, &bits);
    EXPECT_EQ(result.at("a").at(0.1), 0.0);
    EXPECT_FALSE(result.contains("b"));
    EXPECT_FALSE(result.contains("c"));
    EXPECT_EQ(bits.at("d"), bits_per_weight(GGML_TYPE_IQ1_M));
}

TEST(BlockMeans, are_interpolated) {
    BlockMeans means;
    EXPECT_TRUE(means.empty());
    means.add(2, 1.0);
    means.add(2, 3.0);
    means.add(6, 6.0);
    EXPECT_EQ(means.at(2), 2.0);
    EXPECT_EQ(means.at(3), 3.0);
    EXPECT_EQ(means.at(0), 2.0);
    EXPECT_EQ(means.at(9), 6.0);
}

}  // namespace
}  // namespace cerebellum
