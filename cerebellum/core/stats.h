#pragma once

#include <cstddef>
#include <limits>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <vector>

namespace cerebellum {

/// Formulas, assumptions and sources: docs/statistics.md.

/// A mean with its standard error. Error is NaN where fewer than two clusters were seen.
struct Estimate {
    double mean = 0.0;
    double error = 0.0;
    double dof = std::numeric_limits<double>::infinity();  // degrees of freedom of the error
};
/// Mean and error; null in the text where they are no numbers.
void to_json(nlohmann::json& json, const Estimate& estimate);

struct Interval {
    double lower = 0.0;
    double upper = 0.0;
};

/// Mean over positions with the standard error clustered by window: `sums[w]` is the sum of a quantity over the
/// `counts[w]` scored positions of window w. Uses the ratio estimator's linearisation,
/// se² = W/(W−1) · Σ (sums[w] − mean·counts[w])² / (Σ counts)² (Cochran, Sampling Techniques, 3rd ed., §6.3), with
/// W − 1 degrees of freedom.
Estimate clustered_mean(std::span<const double> sums, std::span<const double> counts);

/// The same from windows that come one by one or are kept apart: merging two accumulators gives what one that saw all
/// their windows would hold, up to rounding. Centred second moments (Chan, Golub and LeVeque, 1979), so that nothing
/// cancels.
class ClusteredSums {
  public:
    void add(double sum, double count);
    void merge(const ClusteredSums& other);
    double windows() const { return windows_; }
    Estimate mean() const;

  private:
    double windows_ = 0.0;
    double mean_sum_ = 0.0, mean_count_ = 0.0;
    double sum_sum_ = 0.0, sum_count_ = 0.0, count_count_ = 0.0;  // Σ of products of deviations from the means
};

/// Difference a − b of two quantities on the same windows; clustered by window. All three have one entry per window.
Estimate paired_difference(std::span<const double> a, std::span<const double> b, std::span<const double> counts);

/// Probability that Student's t with these degrees of freedom (infinity: the normal distribution) is at most x.
double t_cumulative(double x, double dof);
/// Inverse of t_cumulative; 0 < probability < 1, dof > 0.
double t_quantile(double probability, double dof);

/// mean ± t·error; without limits where the error is not known.
Interval confidence_interval(const Estimate& estimate, double level = 0.95);

/// One-sided p-values of the t test against a hypothetical mean: small where the mean is shown to be greater, or less.
/// Where the error is zero the comparison of the means decides; where it is not known, 1.
double p_greater(const Estimate& estimate, double than = 0.0);
double p_less(const Estimate& estimate, double than = 0.0);

/// p-values adjusted for their number; compare each with the level. Holm (1979) bounds the chance of one false claim or
/// more; Benjamini and Hochberg (1995) the expected share of false claims among the claims. NaN counts as 1.
std::vector<double> adjust_holm(std::span<const double> p_values);
std::vector<double> adjust_benjamini_hochberg(std::span<const double> p_values);

/// p-values of many one-sided tests on the same windows, each of "the mean of these window figures is greater than
/// zero", adjusted so that the chance of one false claim or more is bounded: the t statistics are compared with their
/// step-down maxima over sign flips of whole windows (Westfall and Young, 1993). Assumes symmetry, not normality, and
/// uses how the tests depend on each other. All 2^W sign patterns where there are at most 4096, else 4096 of a fixed
/// seed; with W windows no p-value is below 1/2^W. All rows have the same length.
std::vector<double> adjust_by_sign_flips(std::span<const std::vector<double>> rows);

/// Expected loss of choosing by the estimate's sign: E[max(0, −X)] for X distributed around `gap` as t·error. What
/// would be gained on average by knowing X exactly (Chick and Inoue, Operations Research 49(5), 2001). Infinite with
/// one degree of freedom or fewer.
double expected_loss(const Estimate& gap);

/// Weighted least squares under the condition that the result never rises: pool-adjacent-violators (Ayer et al., 1955;
/// Barlow et al., 1972). Weights are positive.
std::vector<double> antitonic_fit(std::span<const double> values, std::span<const double> weights);

/// Spearman's rank correlation, ties given their mean rank. NaN with fewer than two points or without variation.
double spearman(std::span<const double> x, std::span<const double> y);

}  // namespace cerebellum
