#pragma once

#include <span>
#include <utility>
#include <vector>

#include "cerebellum/core/stats.h"
#include "cerebellum/evaluate/token_scores.h"

namespace cerebellum {

/// How the error of a mean is estimated.
enum class ErrorModel {
    by_window,  // tokens of a window depend on each other: clustered
    by_token,   // as llama-perplexity does it: as if all tokens were independent, sd / √(n − 1), its roundings
};

ErrorModel error_model_of(TextConvention convention);

/// Means over the scored tokens, with errors of the chosen kind.
struct PerplexityFigures {
    Estimate nll;         // nats per token
    Estimate perplexity;  // e^nll; error by the delta method
    std::size_t tokens = 0;
    std::size_t windows = 0;
};

PerplexityFigures perplexity_figures(const FileTokenScores& scores, ErrorModel model);
/// nll of a minus nll of b on the same text, paired: ln(PPL(a) / PPL(b)).
Estimate nll_difference(const FileTokenScores& a, const FileTokenScores& b, ErrorModel model);
/// KLD of a minus KLD of b from the same reference, paired.
Estimate kld_difference(const FileTokenScores& a, const FileTokenScores& b, ErrorModel model);

/// (share, value at that share of the sorted values), by llama-perplexity's interpolation.
using Quantiles = std::vector<std::pair<double, double>>;

/// What llama-perplexity --kl-divergence reports.
struct DivergenceFigures {
    PerplexityFigures file, reference;
    double nll_correlation = 0.0;
    Estimate log_ratio;   // ln(PPL / reference PPL)
    Estimate ratio;       // PPL / reference PPL
    Estimate difference;  // PPL − reference PPL
    Estimate kld;
    Quantiles kld_quantiles;
    Estimate change;  // of the probability of the token that follows
    Estimate rms_change;
    Quantiles change_quantiles;
    Estimate same_top;  // 0 to 1
};

DivergenceFigures divergence_figures(const FileTokenScores& scores, ErrorModel model);

}  // namespace cerebellum
