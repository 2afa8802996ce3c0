#include "cerebellum/predict/calibration.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>

namespace cerebellum {

namespace {

/// How far recipes scatter around the interpolation, as believed before any was measured, and how many residuals that
/// belief counts for.
constexpr double prior_spread = 0.1;
constexpr double prior_residuals = 2.0;
/// By how much the log ratio may move for every unit of log sum outside of the points.
constexpr double drift_outside = 0.15;

}  // namespace

Calibration::Calibration(std::span<const WholePoint> points) {
    for (const auto& point : points) {
        if (!(point.sum > 0.0) || !(point.whole.mean > 0.0)) continue;
        const double error = point.whole.error / point.whole.mean;
        points_.push_back(
            {std::log(point.sum), std::log(point.whole.mean / point.sum), std::isfinite(error) ? error : prior_spread});
    }
    std::ranges::sort(points_, {}, &Point::log_sum);
    double squares = prior_residuals * prior_spread * prior_spread, n = prior_residuals;
    for (std::size_t i = 1; i + 1 < points_.size(); ++i, ++n) {
        const Point neighbours[] = {points_[i - 1], points_[i + 1]};
        const double residual = points_[i].log_ratio - interpolate(neighbours, points_[i].log_sum).log_ratio;
        squares += residual * residual;
    }
    spread_ = std::sqrt(squares / n);
}

Calibration::Point Calibration::interpolate(std::span<const Point> points, double log_sum) {
    const auto above = std::ranges::find_if(points, [&](const Point& p) { return p.log_sum >= log_sum; });
    if (above == points.begin()) return points.front();
    if (above == points.end()) return points.back();
    const auto& lower = *(above - 1);
    const double t = (log_sum - lower.log_sum) / (above->log_sum - lower.log_sum);
    return {log_sum, lower.log_ratio + t * (above->log_ratio - lower.log_ratio),
            std::max(lower.relative_error, above->relative_error)};
}

Estimate Calibration::predict(double sum) const {
    if (empty()) return {sum, std::numeric_limits<double>::quiet_NaN()};
    if (!(sum > 0.0)) return {sum, 0.0};
    const auto at = interpolate(points_, std::log(sum));
    const double mean = sum * std::exp(at.log_ratio);
    const double outside = at.log_sum - std::log(sum);  // 0 between the points
    return {mean, mean * std::hypot(at.relative_error, spread_, drift_outside * outside)};
}

double Calibration::ratio(double sum) const {
    return empty() || !(sum > 0.0) ? 1.0 : std::exp(interpolate(points_, std::log(sum)).log_ratio);
}

Estimate interaction_ratio(std::span<const double> whole, std::span<const std::vector<double>> parts) {
    std::vector<double> sum(whole.size());
    for (const auto& part : parts) {
        assert(part.size() == whole.size());
        for (std::size_t w = 0; w < sum.size(); ++w) sum[w] += part[w];
    }
    return clustered_mean(whole, sum);
}

}  // namespace cerebellum
