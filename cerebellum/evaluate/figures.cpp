#include "cerebellum/evaluate/figures.h"

#include <cassert>
#include <cmath>

namespace cerebellum {

namespace {

template <typename Value>
Estimate mean_of(std::span<const WindowScore> windows, Value value) {
    std::vector<double> sums, counts;
    for (const auto& window : windows) {
        sums.push_back(value(window));
        counts.push_back(window.count);
    }
    return clustered_mean(sums, counts);
}

}  // namespace

Figures summarize(std::span<const WindowScore> windows) {
    Figures figures;
    figures.kld = mean_of(windows, [](const WindowScore& w) { return w.kld; });
    figures.nll = mean_of(windows, [](const WindowScore& w) { return w.nll; });
    figures.delta_nll = mean_of(windows, [](const WindowScore& w) { return w.nll - w.reference_nll; });
    figures.top1_agree = mean_of(windows, [](const WindowScore& w) { return w.same_top; });
    figures.perplexity = std::exp(figures.nll.mean);
    figures.perplexity_error = figures.perplexity * figures.nll.error;
    for (const auto& window : windows) figures.tokens += window.count;
    return figures;
}

Estimate kld_difference(std::span<const WindowScore> a, std::span<const WindowScore> b) {
    assert(a.size() == b.size());
    std::vector<double> sums, counts;
    for (std::size_t w = 0; w < a.size(); ++w) {
        sums.push_back(a[w].kld - b[w].kld);
        counts.push_back(a[w].count);
    }
    return clustered_mean(sums, counts);
}

}  // namespace cerebellum
