#include "cerebellum/evaluate/llama_perplexity.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace cerebellum::llama_perplexity {

namespace {

/// Rounds to the nearest integer for |x| ≤ 2²².
int nearest_int(float x) {
    return static_cast<int>(std::bit_cast<std::uint32_t>(x + 12582912.0F) & 0x007fffffU) - 0x00400000;
}

double sum_exp(std::span<const float> logits, float max) {
    double sum = 0.0;
    for (const float logit : logits) sum += static_cast<double>(std::exp(logit - max));
    return sum;
}

}  // namespace

double nll(std::span<const float> logits, Token target) {
    const float max = *std::ranges::max_element(logits);
    return -(static_cast<double>(logits[static_cast<std::size_t>(target)] - max) - std::log(sum_exp(logits, max)));
}

void SixteenBitRow::assign(std::span<const float> logits) {
    const auto [low, high] = std::ranges::minmax_element(logits);
    const float max = *high;
    const float min = std::max(*low, max - 16.0F);
    const auto log_sum = static_cast<float>(std::log(sum_exp(logits, max)));
    min_log_prob_ = min - max - log_sum;
    scale_ = (max - min) / 65535.0F;
    codes_.assign(logits.size(), 0);
    if (scale_ == 0.0F) return;
    const float inverse = 1.0F / scale_;
    for (std::size_t i = 0; i < logits.size(); ++i)
        if (logits[i] > min) codes_[i] = static_cast<std::uint16_t>(nearest_int(inverse * (logits[i] - min)));
}

TokenScore SixteenBitRow::compare(std::span<const float> candidate, Token target) const {
    const auto top = std::ranges::max_element(candidate);
    const auto log_sum = static_cast<float>(std::log(sum_exp(candidate, *top)));
    const float shift = *top + log_sum;
    const auto log_p = [&](std::size_t i) { return scale_ * static_cast<float>(codes_[i]) + min_log_prob_; };
    const auto at = static_cast<std::size_t>(target);
    const float nll = shift - candidate[at];
    const float reference_nll = -log_p(at);
    double kld = 0.0;
    std::size_t reference_top = 0;
    float best = 0.0F;
    for (std::size_t i = 0; i < candidate.size(); ++i) {
        const float p = log_p(i);
        if (i == 0 || p > best) {
            best = p;
            reference_top = i;
        }
        if (p > -16.0F) kld += static_cast<double>(std::exp(p) * (p - candidate[i] + shift));
    }
    TokenScore score;
    score.nll = static_cast<double>(nll);
    score.reference_nll = static_cast<double>(reference_nll);
    score.kld = kld;
    score.probability_change = static_cast<double>(std::exp(-nll) - std::exp(-reference_nll));
    score.same_top = reference_top == static_cast<std::size_t>(top - candidate.begin());
    return score;
}

float log_prob(std::span<const float> logits, Token target) {
    const float max = *std::ranges::max_element(logits);
    float sum = 0.0F;
    for (const float logit : logits) sum += std::exp(logit - max);
    return logits[static_cast<std::size_t>(target)] - max - std::log(sum);
}

float log_of_rounded_prob(std::span<const float> logits, Token target) {
    const float max = *std::ranges::max_element(logits);
    auto prob = std::exp(logits[static_cast<std::size_t>(target)] - max);
    prob = static_cast<float>(static_cast<double>(prob) / sum_exp(logits, max));
    return std::log(prob);
}

}  // namespace cerebellum::llama_perplexity
