#include "cerebellum/sweep/figure_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "cerebellum/core/quant_type.h"

namespace cerebellum {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

Measurement fast(std::vector<double> energy) {
    Measurement m;
    m.tier = Tier::fast;
    m.local_counts.assign(energy.size(), 100.0);
    m.local_energy = std::move(energy);
    return m;
}
Measurement full(std::vector<double> kld) {
    Measurement m;
    m.counts.assign(kld.size(), 100.0);
    m.delta_nll = m.top1_agree = std::vector<double>(kld.size(), 1.0);
    m.kld = std::move(kld);
    return m;
}

TEST(FigureCheck, what_is_no_number_or_clearly_negative_is_wrong) {
    EXPECT_EQ(why_wrong(fast({1e-3, 0.0, 1e30})), "");
    EXPECT_EQ(why_wrong(full({1e-9, -1e-4, 3.0})), "") << "rounding";
    EXPECT_EQ(why_wrong(fast({1.0, std::nan("")})), "is not a finite number");
    EXPECT_EQ(why_wrong(full({std::numeric_limits<double>::infinity()})), "is not a finite number");
    auto nll = full({1.0});
    nll.delta_nll[0] = -std::numeric_limits<double>::infinity();
    EXPECT_EQ(why_wrong(nll), "is not a finite number");
    auto nowhere = full({0.0});
    nowhere.counts[0] = 0.0;
    EXPECT_EQ(why_wrong(nowhere), "was scored nowhere");
    EXPECT_THAT(why_wrong(full({1.0, -0.5})), HasSubstr("negative"));
}

TEST(FigureCheck, outliers_are_far_above_both_neighbours_in_bits_or_zero_where_others_are_not) {
    // In any order; 2.6 bits do 1e-2, 4.5 bits 1e-3, 6.6 bits 1e-5, 8.5 bits 1e-7.
    const std::vector<TypeFigure> sound = {{8.5, 1e-7}, {2.6, 1e-2}, {6.6, 1e-5}, {4.5, 1e-3}};
    EXPECT_THAT(outliers(sound), IsEmpty());
    const auto with = [&](std::size_t i, double value) {
        auto figures = sound;
        figures[i].value = value;
        return outliers(figures);
    };
    EXPECT_THAT(with(3, 101.0), ElementsAre(3));
    EXPECT_THAT(with(3, 99.0), IsEmpty()) << "not 1e4 times the one of fewer bits";
    EXPECT_THAT(with(0, 101.0), ElementsAre(0)) << "at the end the nearest two stand for the neighbours";
    EXPECT_THAT(with(1, 1e2), ElementsAre(1));
    EXPECT_THAT(with(2, 0.0), ElementsAre(2));
    EXPECT_THAT(outliers(std::vector<TypeFigure>{{2.6, 0.0}, {4.5, 1.0}, {6.6, 0.0}}), ElementsAre(0, 1, 2))
        << "whoever is right";
    EXPECT_THAT(outliers(std::vector<TypeFigure>{{2.6, 0.0}, {4.5, 0.0}, {6.6, 0.0}}), IsEmpty());
    EXPECT_THAT(outliers(std::vector<TypeFigure>{{2.6, 1e9}, {4.5, 1.0}}), IsEmpty());
    EXPECT_THAT(outliers(std::vector<TypeFigure>{{2.6, 1.0}, {4.5, 1e5}}), ElementsAre(1));
    EXPECT_THAT(outliers(std::vector<TypeFigure>{{4.5, 1e9}}), IsEmpty());
    EXPECT_THAT(outliers({}), IsEmpty());
}

TEST(FigureCheck, a_repetition_may_differ_by_a_percent_in_each_window) {
    EXPECT_TRUE(repeats(fast({1.0, 2.0}), fast({1.005, 1.99})));
    EXPECT_FALSE(repeats(fast({1.0, 2.0}), fast({1.0, 2.1})));
    EXPECT_FALSE(repeats(fast({1.0, 2.0}), fast({1.0})));
    EXPECT_FALSE(repeats(fast({1.0}), fast({std::nan("")})));
    EXPECT_TRUE(repeats(fast({0.0}), fast({5e-9}))) << "float rounding";
    EXPECT_TRUE(repeats(full({1e-5}), full({9e-5})));
    EXPECT_FALSE(repeats(full({1.0}), full({1.1})));
}

TEST(FigureCheck, a_type_is_lossless_where_its_numbers_are_the_weight_s_own) {
    std::vector<float> weights(64);
    for (std::size_t i = 0; i < weights.size(); ++i)
        weights[i] = 0.5F * static_cast<float>(static_cast<int>(i % 16) - 8);
    ggml_tensor tensor{};
    tensor.type = GGML_TYPE_F32;
    tensor.ne[0] = 32;
    tensor.ne[1] = 2;
    tensor.ne[2] = tensor.ne[3] = 1;
    tensor.data = weights.data();
    const auto in = [&](ggml_type type) {
        std::vector<std::byte> bytes(type_size_bytes(type, 32, 2));
        ggml_quantize_chunk(type, weights.data(), bytes.data(), 0, 2, 32, nullptr);
        return bytes;
    };
    auto q4 = in(GGML_TYPE_Q4_0);
    EXPECT_TRUE(is_lossless(tensor, GGML_TYPE_Q4_0, q4)) << "the weights lie on its grid";
    EXPECT_FALSE(is_lossless(tensor, GGML_TYPE_IQ4_NL, in(GGML_TYPE_IQ4_NL)));
    q4.back() ^= std::byte{1};
    EXPECT_FALSE(is_lossless(tensor, GGML_TYPE_Q4_0, q4));
}

}  // namespace
}  // namespace cerebellum
