#include "cerebellum/evaluate/text_figures.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace cerebellum {
namespace {

FileTokenScores random_scores(int n_windows, int per_window, double common_spread) {
    std::mt19937 random(11);
    std::normal_distribution<double> normal;
    FileTokenScores scores;
    scores.per_window = per_window;
    for (int w = 0; w < n_windows; ++w) {
        const double common = common_spread * normal(random);
        for (int i = 0; i < per_window; ++i) {
            TokenScore token;
            token.reference_nll = 3.0 + normal(random);
            token.nll = token.reference_nll + 0.1 + common + 0.01 * normal(random);
            token.kld = std::exp(normal(random));
            token.probability_change = 0.1 * normal(random);
            token.same_top = random() % 4 != 0;
            scores.tokens.push_back(token);
        }
    }
    return scores;
}

TEST(TextFigures, errors_by_token_are_the_textbook_s) {
    const auto scores = random_scores(10, 50, 0.0);
    const auto figures = divergence_figures(scores, ErrorModel::by_token);
    double mean = 0.0, squares = 0.0;
    for (const auto& token : scores.tokens) mean += token.kld / 500.0;
    for (const auto& token : scores.tokens) squares += (token.kld - mean) * (token.kld - mean);
    EXPECT_NEAR(figures.kld.mean, mean, 1e-12);
    EXPECT_NEAR(figures.kld.error, std::sqrt(squares / 500.0 / 499.0), 1e-12);
    EXPECT_NEAR(figures.ratio.mean, figures.file.perplexity.mean / figures.reference.perplexity.mean, 1e-9);
}

TEST(TextFigures, errors_by_window_see_what_the_tokens_of_a_window_have_in_common) {
    const auto scores = random_scores(200, 50, 0.1);
    const auto by_token = divergence_figures(scores, ErrorModel::by_token).log_ratio;
    const auto by_window = divergence_figures(scores, ErrorModel::by_window).log_ratio;
    EXPECT_NEAR(by_token.mean, by_window.mean, 1e-12);
    EXPECT_NEAR(by_window.error, 0.1 / std::sqrt(200.0), 0.0015);
    EXPECT_LT(by_token.error, by_window.error / 4.0);
}

TEST(TextFigures, paired_differences_have_the_errors_of_differences) {
    const auto a = random_scores(100, 20, 0.5);
    auto b = a;
    for (auto& token : b.tokens) token.nll += 0.01;
    const auto difference = nll_difference(b, a, ErrorModel::by_window);
    EXPECT_NEAR(difference.mean, 0.01, 1e-12);
    EXPECT_NEAR(difference.error, 0.0, 1e-9);
    EXPECT_GT(perplexity_figures(a, ErrorModel::by_window).nll.error, 0.01);
}

TEST(TextFigures, quantiles_interpolate) {
    FileTokenScores scores;
    scores.per_window = 5;
    for (const double kld : {5.0, 1.0, 3.0, 2.0, 4.0}) scores.tokens.push_back({1.0, 1.0, kld, 0.0, true});
    for (const auto& [share, value] : divergence_figures(scores, ErrorModel::by_token).kld_quantiles)
        EXPECT_NEAR(value, 1.0 + 4.0 * share, 1e-5) << share;
}

}  // namespace
}  // namespace cerebellum
