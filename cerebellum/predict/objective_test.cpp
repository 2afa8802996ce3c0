#include "cerebellum/predict/objective.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "cerebellum/core/error.h"
#include "cerebellum/core/stats.h"

namespace cerebellum {
namespace {

constexpr std::size_t n_windows = 16;
constexpr double positions = 200.0;

std::vector<std::string> two_domains() {
    std::vector<std::string> domains;
    for (std::size_t w = 0; w < n_windows; ++w) domains.emplace_back(w % 2 == 0 ? "chat" : "code");
    return domains;
}

/// A full row: so much KLD in each window, ΔNLL and flips as given per nat with some noise.
Measurement row(const std::string& tensor, const std::string& type, double kld, double nll_rate, double noise,
                std::mt19937& random) {
    std::normal_distribution<double> normal;
    Measurement m;
    m.tensor = tensor;
    m.type = type;
    for (std::size_t w = 0; w < n_windows; ++w) {
        const double here = kld * (1.0 + 0.05 * normal(random));
        m.counts.push_back(positions);
        m.kld.push_back(positions * here);
        m.delta_nll.push_back(positions * (nll_rate * here + noise * normal(random)));
        m.top1_agree.push_back(positions * (1.0 - std::sqrt(0.5 * here) * (1.0 + 0.01 * normal(random))));
    }
    return m;
}

double cost_of(const std::map<std::string, std::vector<Damage>>& costs, const std::string& tensor) {
    return costs.at(tensor).front().kld;
}

TEST(Profile, is_what_was_asked_for) {
    const std::vector<std::string> domains = {"code", "chat", "math", "code"};
    EXPECT_TRUE(parse_profile("", domains).empty());
    for (const auto& [domain, share] : parse_profile("balanced", domains)) EXPECT_DOUBLE_EQ(share, 1.0 / 3.0);
    EXPECT_DOUBLE_EQ(parse_profile("code", domains).at("code"), 0.7);
    EXPECT_DOUBLE_EQ(parse_profile("code", domains).at("math"), 0.15);
    const auto own = parse_profile("code=3,chat=1", domains);
    EXPECT_DOUBLE_EQ(own.at("code"), 0.75);
    EXPECT_FALSE(own.contains("math"));
    for (const auto* wrong : {"poetry", "poetry=1", "code=", "code=x", "code=0", "code=-1", "code=1,", "code=1,code=2",
                              "code=nan", "code=1;chat=2", "=1"})
        EXPECT_THROW(parse_profile(wrong, domains), UsageError) << wrong;
    EXPECT_THROW(parse_profile("balanced", {}), UsageError);
}

TEST(WindowWeights, give_each_domain_its_share) {
    const std::vector<std::string> domains = {"a", "a", "a", "b"};
    const auto weights = window_weights({{"a", 0.25}, {"b", 0.75}}, domains);
    EXPECT_DOUBLE_EQ(weights[0] + weights[1] + weights[2], 1.0);
    EXPECT_DOUBLE_EQ(weights[3], 3.0);
    EXPECT_EQ(window_weights({}, domains), std::vector<double>(4, 1.0));
    EXPECT_EQ(window_weights({{"b", 1.0}}, domains), (std::vector<double>{0.0, 0.0, 0.0, 4.0}));
}

TEST(Weigh, makes_a_mean_that_of_the_profile_for_rows_of_all_and_of_the_first_windows) {
    Measurement m;
    m.tensor = "t";
    m.type = "q4_0";
    m.tier = Tier::full;
    const auto domains = two_domains();
    for (const auto& domain : domains) {
        m.counts.push_back(positions);
        m.kld.push_back(positions * (domain == "code" ? 3.0 : 1.0));
        m.delta_nll.push_back(0.0);
        m.top1_agree.push_back(positions);
    }
    auto half = m;
    for (auto* sums : {&half.counts, &half.kld, &half.delta_nll, &half.top1_agree}) sums->resize(sums->size() / 2);
    const auto weighed = weigh({m, half}, {{"code", 0.75}, {"chat", 0.25}}, domains);
    for (const auto& row : weighed) EXPECT_DOUBLE_EQ(clustered_mean(row.kld, row.counts).mean, 2.5);
    const auto code_only = weigh({m, half}, {{"code", 1.0}}, domains);
    EXPECT_EQ(code_only[0].counts.size(), n_windows / 2) << "windows that do not count are no evidence of precision";
    EXPECT_DOUBLE_EQ(clustered_mean(code_only[1].kld, code_only[1].counts).mean, 3.0);
    auto more = m;
    more.counts.resize(domains.size() + 1);
    EXPECT_THROW(weigh({more}, {{"code", 1.0}}, domains), Error);
}

TEST(PredictCost, finds_the_tensors_that_cost_more_of_the_likelihood_than_others) {
    std::mt19937 random(3);
    std::vector<Measurement> rows;
    for (int t = 0; t < 20; ++t)
        rows.push_back(row("t" + std::to_string(t), "q4_0", 0.1, t < 10 ? 0.5 : 2.0, 1e-4, random));
    const auto costs = predict_cost(rows, Objective::nll);
    EXPECT_NEAR(cost_of(costs, "t0"), 0.05, 0.01);
    EXPECT_NEAR(cost_of(costs, "t19"), 0.2, 0.02);
}

TEST(PredictCost, of_noise_is_the_same_for_all_and_no_tensor_looks_better_than_the_source) {
    std::mt19937 random(4);
    std::vector<Measurement> rows;
    int negative = 0;
    for (int t = 0; t < 40; ++t) {
        rows.push_back(row("t" + std::to_string(t), "q4_0", 0.01, 1.0, 0.1, random));
        negative += clustered_mean(rows.back().delta_nll, rows.back().counts).mean < 0.0 ? 1 : 0;
    }
    ASSERT_GT(negative, 5) << "the raw figures are not noisy enough to prove anything";
    std::vector<double> costs;
    for (const auto& [tensor, damages] : predict_cost(rows, Objective::nll)) costs.push_back(damages.front().kld);
    EXPECT_GT(*std::ranges::min_element(costs), 0.0);
    EXPECT_LT(*std::ranges::max_element(costs), 3.0 * *std::ranges::min_element(costs));
}

TEST(PredictCost, of_changed_tokens_is_a_square_that_adds_up) {
    std::mt19937 random(5);
    std::vector<Measurement> rows;
    for (int t = 0; t < 10; ++t) rows.push_back(row("t" + std::to_string(t), "q4_0", 0.01 * (t + 1), 1.0, 0.0, random));
    const auto costs = predict_cost(rows, Objective::top1);
    for (int t = 0; t < 10; ++t)
        EXPECT_NEAR(cost_of(costs, "t" + std::to_string(t)), 0.5 * 0.01 * (t + 1), 0.1 * 0.005 * (t + 1));
}

}  // namespace
}  // namespace cerebellum
