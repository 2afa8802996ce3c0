#pragma once

#include <span>
#include <vector>

#include "cerebellum/core/stats.h"
#include "cerebellum/replay/engine.h"

namespace cerebellum {

/// What is said about a file on some text. Errors are clustered by window.
struct Figures {
    Estimate kld;         // nats per token, from the source
    Estimate nll;         // nats per token
    Estimate delta_nll;   // paired difference from the source
    Estimate top1_agree;  // share of positions, 0 to 1
    double perplexity = 0.0;
    double perplexity_error = 0.0;  // by the delta method
    double tokens = 0.0;            // scored positions
};

Figures summarize(std::span<const WindowScore> windows);

/// The difference a − b of two candidates' KLD on the same windows, paired.
Estimate kld_difference(std::span<const WindowScore> a, std::span<const WindowScore> b);

}  // namespace cerebellum
