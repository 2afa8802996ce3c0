#include "cerebellum/evaluate/text_figures.h"

#include <algorithm>
#include <cassert>
#include <cmath>

namespace cerebellum {

namespace {

/// Mean of value(i) over the tokens i of windows of equal length.
template <typename Value>
Estimate mean_of(std::size_t n_tokens, int per_window, ErrorModel model, Value value) {
    if (model == ErrorModel::by_window) {
        std::vector<double> sums, counts;
        const auto length = static_cast<std::size_t>(per_window);
        for (std::size_t begin = 0; begin < n_tokens; begin += length) {
            double sum = 0.0;
            for (std::size_t i = begin; i < begin + length; ++i) sum += value(i);
            sums.push_back(sum);
            counts.push_back(static_cast<double>(length));
        }
        return clustered_mean(sums, counts);
    }
    double sum = 0.0, squares = 0.0;
    for (std::size_t i = 0; i < n_tokens; ++i) {
        const double x = value(i);
        sum += x;
        squares += x * x;
    }
    const auto n = static_cast<double>(n_tokens);
    const double mean = sum / n;
    const double variance = squares / n - mean * mean;
    return {mean, variance > 0.0 ? std::sqrt(variance / (n - 1.0)) : 0.0};
}

template <typename Value>
Estimate mean_of(const FileTokenScores& scores, ErrorModel model, Value value) {
    return mean_of(scores.tokens.size(), scores.per_window, model,
                   [&](std::size_t i) { return value(scores.tokens[i]); });
}

PerplexityFigures with_perplexity(const FileTokenScores& scores, Estimate nll) {
    PerplexityFigures figures;
    figures.nll = nll;
    figures.perplexity.mean = std::exp(nll.mean);
    figures.perplexity.error = figures.perplexity.mean * nll.error;
    figures.tokens = scores.tokens.size();
    figures.windows = scores.tokens.size() / static_cast<std::size_t>(scores.per_window);
    return figures;
}

/// The quantiles in llama-perplexity's order, from the highest; it keeps values in single precision.
template <typename Value>
Quantiles quantiles_of(const FileTokenScores& scores, std::span<const double> shares, Value value) {
    std::vector<float> values;
    values.reserve(scores.tokens.size());
    for (const auto& token : scores.tokens) values.push_back(static_cast<float>(value(token)));
    std::ranges::sort(values);
    Quantiles quantiles;
    for (const double share : shares) {
        const float place = static_cast<float>(share) * static_cast<float>(values.size() - 1);
        const auto below = std::min(static_cast<std::size_t>(place), values.size() - 1);
        const float part = place - static_cast<float>(below);
        const float above = values[std::min(below + 1, values.size() - 1)];
        quantiles.emplace_back(share, static_cast<double>((1.0F - part) * values[below] + part * above));
    }
    return quantiles;
}

double nll_correlation(const FileTokenScores& scores, double mean, double reference_mean) {
    double both = 0.0, own = 0.0, reference = 0.0;
    for (const auto& token : scores.tokens) {
        const double x = token.nll - mean, y = token.reference_nll - reference_mean;
        both += x * y;
        own += x * x;
        reference += y * y;
    }
    return both / std::sqrt(own * reference);
}

/// Errors of both perplexities and of what lies between them as llama-perplexity sums them up, squares and products
/// being rounded to single precision: where files are close, the last digits of a difference show it.
void use_llama_perplexity_s_errors(const FileTokenScores& scores, DivergenceFigures& f) {
    double own_squares = 0.0, reference_squares = 0.0, products = 0.0;
    for (const auto& token : scores.tokens) {
        const auto own = static_cast<float>(token.nll), reference = static_cast<float>(token.reference_nll);
        own_squares += static_cast<double>(own * own);
        reference_squares += static_cast<double>(reference * reference);
        products += static_cast<double>(own * reference);
    }
    const auto n = static_cast<double>(scores.tokens.size());
    const auto covariance = [&](double sum, double a, double b) { return (sum / n - a * b) / (n - 1.0); };
    const double own_mean = f.file.nll.mean, reference_mean = f.reference.nll.mean;
    f.file.nll.error = std::sqrt(std::max(0.0, covariance(own_squares, own_mean, own_mean)));
    f.reference.nll.error = std::sqrt(std::max(0.0, covariance(reference_squares, reference_mean, reference_mean)));
    const double shared = covariance(products, own_mean, reference_mean);
    const auto of_difference = [&](double own_weight, double reference_weight) {
        const double own = own_weight * f.file.nll.error, reference = reference_weight * f.reference.nll.error;
        return std::sqrt(
            std::max(0.0, own * own + reference * reference - 2.0 * own_weight * reference_weight * shared));
    };
    f.file.perplexity.error = f.file.perplexity.mean * f.file.nll.error;
    f.reference.perplexity.error = f.reference.perplexity.mean * f.reference.nll.error;
    f.log_ratio.error = of_difference(1.0, 1.0);
    f.ratio.error = f.ratio.mean * f.log_ratio.error;
    f.difference.error = of_difference(f.file.perplexity.mean, f.reference.perplexity.mean);
}

}  // namespace

ErrorModel error_model_of(TextConvention convention) {
    return convention == TextConvention::llama_perplexity ? ErrorModel::by_token : ErrorModel::by_window;
}

PerplexityFigures perplexity_figures(const FileTokenScores& scores, ErrorModel model) {
    return with_perplexity(scores, mean_of(scores, model, [](const TokenScore& t) { return t.nll; }));
}

Estimate nll_difference(const FileTokenScores& a, const FileTokenScores& b, ErrorModel model) {
    assert(a.tokens.size() == b.tokens.size());
    return mean_of(a.tokens.size(), a.per_window, model,
                   [&](std::size_t i) { return a.tokens[i].nll - b.tokens[i].nll; });
}

Estimate kld_difference(const FileTokenScores& a, const FileTokenScores& b, ErrorModel model) {
    assert(a.tokens.size() == b.tokens.size());
    return mean_of(a.tokens.size(), a.per_window, model,
                   [&](std::size_t i) { return a.tokens[i].kld - b.tokens[i].kld; });
}

DivergenceFigures divergence_figures(const FileTokenScores& scores, ErrorModel model) {
    DivergenceFigures f;
    f.file = perplexity_figures(scores, model);
    f.reference = with_perplexity(scores, mean_of(scores, model, [](const TokenScore& t) { return t.reference_nll; }));
    f.nll_correlation = nll_correlation(scores, f.file.nll.mean, f.reference.nll.mean);
    f.log_ratio = mean_of(scores, model, [](const TokenScore& t) { return t.nll - t.reference_nll; });
    f.ratio.mean = std::exp(f.log_ratio.mean);
    f.ratio.error = f.ratio.mean * f.log_ratio.error;
    const double own = f.file.perplexity.mean, reference = f.reference.perplexity.mean;
    f.difference = {own - reference, mean_of(scores, model, [&](const TokenScore& t) {
                                         return own * t.nll - reference * t.reference_nll;
                                     }).error};
    if (model == ErrorModel::by_token) use_llama_perplexity_s_errors(scores, f);
    f.kld = mean_of(scores, model, [](const TokenScore& t) { return t.kld; });
    constexpr double kld_shares[] = {1.0, 0.999, 0.99, 0.95, 0.9, 0.5, 0.1, 0.05, 0.01, 0.001, 0.0};
    f.kld_quantiles = quantiles_of(scores, kld_shares, [](const TokenScore& t) { return t.kld; });
    f.change = mean_of(scores, model, [](const TokenScore& t) { return t.probability_change; });
    const auto square =
        mean_of(scores, model, [](const TokenScore& t) { return t.probability_change * t.probability_change; });
    f.rms_change.mean = std::sqrt(square.mean);
    f.rms_change.error = square.mean > 0.0 ? 0.5 / f.rms_change.mean * square.error : 0.0;
    constexpr double change_shares[] = {1.0, 0.999, 0.99, 0.95, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01, 0.001, 0.0};
    f.change_quantiles = quantiles_of(scores, change_shares, [](const TokenScore& t) { return t.probability_change; });
    f.same_top = mean_of(scores, model, [](const TokenScore& t) { return t.same_top ? 1.0 : 0.0; });
    return f;
}

}  // namespace cerebellum
