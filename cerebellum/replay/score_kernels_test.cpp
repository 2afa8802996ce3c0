#include "cerebellum/replay/score_kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

namespace cerebellum {
namespace {

std::vector<double> log_softmax(const std::vector<float>& logits) {
    const auto max = static_cast<double>(std::ranges::max(logits));
    double sum = 0.0;
    for (const float x : logits) sum += std::exp(static_cast<double>(x) - max);
    std::vector<double> result;
    for (const float x : logits) result.push_back(static_cast<double>(x) - max - std::log(sum));
    return result;
}

/// In double precision with the same terms p·(eᵈ − 1 − d), which do not cancel; long double for the rest.
double exact_kld(const std::vector<float>& variant, const std::vector<float>& reference) {
    const auto q = log_softmax(variant), p = log_softmax(reference);
    long double sum = 0.0L;
    for (std::size_t i = 0; i < p.size(); ++i) {
        const double d = q[i] - p[i];
        sum += std::exp(p[i]) * (std::expm1(d) - d);
    }
    return static_cast<double>(sum);
}

std::vector<float> random_logits(std::size_t n, float spread, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0.0F, spread);
    std::vector<float> logits(n);
    for (float& x : logits) x = normal(random);
    return logits;
}

std::vector<float> disturbed(std::vector<float> logits, float by, unsigned seed) {
    const auto noise = random_logits(logits.size(), by, seed);
    for (std::size_t i = 0; i < logits.size(); ++i) logits[i] += noise[i];
    return logits;
}

PositionScore score(const std::vector<float>& variant, const std::vector<float>& reference, int target = 0) {
    std::vector<float> log_p(reference.size());
    log_softmax_row(reference.data(), log_p.data(), std::ssize(reference));
    return score_row(variant.data(), log_p.data(), std::ssize(variant), target);
}

TEST(ScoreKernels, log_softmax_equals_double_precision) {
    for (const std::size_t n :
         std::initializer_list<std::size_t>{1, 2, 15, 16, 17, 1023, 1024, 1025, 4096, 32000, 151937}) {
        const auto logits = random_logits(n, 4.0F, static_cast<unsigned>(n));
        std::vector<float> out(n);
        log_softmax_row(logits.data(), out.data(), std::ssize(logits));
        const auto exact = log_softmax(logits);
        double largest = 0.0;
        for (std::size_t i = 0; i < n; ++i)
            largest = std::max(largest, std::fabs(static_cast<double>(out[i]) - exact[i]));
        EXPECT_LT(largest, 4e-6) << n;  // two units in the last place of numbers around 20
    }
}

TEST(ScoreKernels, damage_of_every_size_equals_double_precision) {
    for (const std::size_t n : std::initializer_list<std::size_t>{17, 1000, 4096, 49153}) {
        const auto reference = random_logits(n, 3.0F, static_cast<unsigned>(n));
        for (const float by : {3.0F, 1.0F, 0.3F, 0.1F, 0.03F, 0.01F, 1e-3F}) {
            const auto variant = disturbed(reference, by, 5);
            const double exact = exact_kld(variant, reference);
            EXPECT_NEAR(static_cast<double>(score(variant, reference).kld), exact, 2e-5 * exact + 1e-12)
                << n << " logits disturbed by " << by;
        }
    }
}

TEST(ScoreKernels, nearly_identical_distributions_keep_their_digits) {
    for (const std::size_t n : std::initializer_list<std::size_t>{4096, 49153}) {
        const auto reference = random_logits(n, 3.0F, 3);
        const auto variant = disturbed(reference, 4.5e-5F, 4);
        const double exact = exact_kld(variant, reference);
        EXPECT_GT(exact, 1e-10);
        EXPECT_LT(exact, 1e-8);
        EXPECT_NEAR(static_cast<double>(score(variant, reference).kld), exact, 1e-3 * exact) << n;
    }
}

TEST(ScoreKernels, identical_distributions_have_no_damage) {
    for (const float spread : {0.0F, 3.0F, 30.0F}) {
        const auto logits = random_logits(5000, spread, 9);
        const auto same = score(logits, logits, 17);
        EXPECT_LT(std::fabs(same.kld), 1e-12F);
        EXPECT_EQ(same.same_top, 1.0F);
        EXPECT_EQ(same.nll, same.reference_nll);
    }
}

TEST(ScoreKernels, a_constant_added_to_all_logits_changes_little) {
    const auto reference = random_logits(4096, 3.0F, 11);
    auto variant = disturbed(reference, 0.1F, 12);
    const float before = score(variant, reference).kld;
    for (float& x : variant) x += 4.0F;
    EXPECT_NEAR(score(variant, reference).kld, before, 1e-4F * before);
}

TEST(ScoreKernels, huge_logits_overflow_nowhere) {
    for (const float scale : {1e3F, 1e5F, 1e30F}) {
        auto reference = random_logits(1000, scale, 21);
        auto variant = random_logits(1000, scale, 22);
        reference[7] = variant[7] = 20.0F * scale;  // both are certain of token 7
        const auto certain = score(variant, reference, 7);
        EXPECT_EQ(certain.kld, 0.0F) << scale;
        EXPECT_EQ(certain.same_top, 1.0F);
        EXPECT_EQ(certain.nll, 0.0F);
        variant[8] = 40.0F * scale;  // the variant is certain of another one
        const auto wrong = score(variant, reference, 7);
        EXPECT_NEAR(wrong.kld / (20.0F * scale), 1.0F, 1e-5F) << scale;
        EXPECT_NEAR(wrong.nll / (20.0F * scale), 1.0F, 1e-5F) << scale;
        EXPECT_EQ(wrong.same_top, 0.0F);
    }
}

TEST(ScoreKernels, tokens_that_are_ruled_out_do_no_harm) {
    auto reference = random_logits(1000, 2.0F, 31);
    auto variant = disturbed(reference, 0.1F, 32);
    for (std::size_t i = 100; i < 200; ++i) reference[i] = variant[i] = -1e6F;
    const double exact = exact_kld(variant, reference);
    EXPECT_NEAR(static_cast<double>(score(variant, reference).kld), exact, 1e-4 * exact);
}

TEST(ScoreKernels, negative_log_likelihoods_are_those_of_the_target) {
    const auto reference = random_logits(4099, 3.0F, 41);
    const auto variant = disturbed(reference, 0.5F, 42);
    const auto p = log_softmax(reference), q = log_softmax(variant);
    for (const int target : {0, 1, 2048, 4098}) {
        const auto at = static_cast<std::size_t>(target);
        const auto result = score(variant, reference, target);
        EXPECT_NEAR(static_cast<double>(result.nll), -q[at], 4e-6);
        EXPECT_NEAR(static_cast<double>(result.reference_nll), -p[at], 4e-6);
    }
    const auto none = score(variant, reference, -1);
    EXPECT_TRUE(std::isnan(none.nll) && std::isnan(none.reference_nll));
    EXPECT_FALSE(std::isnan(none.kld));
}

}  // namespace
}  // namespace cerebellum
