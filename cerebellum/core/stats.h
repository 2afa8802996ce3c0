#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace cerebellum {

/// A mean with its standard error. Error is NaN where fewer than two clusters were seen.
struct Estimate {
    double mean = 0.0;
    double error = 0.0;
};

/// Mean over positions with the standard error clustered by window: `sums[w]` is the sum of a quantity over the
/// `counts[w]` scored positions of window w. Uses the ratio estimator's linearisation,
/// se² = W/(W−1) · Σ (sums[w] − mean·counts[w])² / (Σ counts)² (Cochran, Sampling Techniques, 3rd ed., §6.3).
Estimate clustered_mean(std::span<const double> sums, std::span<const double> counts);

/// Spearman's rank correlation, ties given their mean rank. NaN with fewer than two points or without variation.
double spearman(std::span<const double> x, std::span<const double> y);

}  // namespace cerebellum
