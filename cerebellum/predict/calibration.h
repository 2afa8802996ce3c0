#pragma once

#include <span>
#include <vector>

#include "cerebellum/core/stats.h"

namespace cerebellum {

/// A whole recipe: what its single damages add up to, and what it was measured to do.
struct WholePoint {
    double sum = 0.0;  // nats per token
    Estimate whole;    // nats per token; its error is clustered by window
};

/// From the sum of single damages to the damage of the whole. The ratio whole/sum may lie on either side of 1 and
/// changes with the size of the damage, so it is taken from measured recipes: log ratio as a function of log sum,
/// linear between neighbouring points and constant outside of them.
///
/// The error of a prediction has three independent parts, all relative: of the nearest measured wholes, how far other
/// recipes lie from such an interpolation (root mean square, every inner point left out in turn, with a prior of 10 %
/// that counts as two of them), and, outside of the points, a spread that grows with the distance in log sum.
class Calibration {
  public:
    /// Points with a sum or a whole of zero or less say nothing of a ratio and are left out.
    explicit Calibration(std::span<const WholePoint> points = {});

    bool empty() const { return points_.empty(); }
    std::size_t n_points() const { return points_.size(); }
    /// Of a recipe whose single damages add up to `sum`: nats per token with its error. Without any point the sum
    /// itself, its error NaN.
    Estimate predict(double sum) const;
    /// whole/sum at this sum; 1 where nothing is known.
    double ratio(double sum) const;

  private:
    struct Point {
        double log_sum = 0.0;
        double log_ratio = 0.0;
        double relative_error = 0.0;
    };
    static Point interpolate(std::span<const Point> points, double log_sum);

    std::vector<Point> points_;  // by rising log_sum
    double spread_ = 0.0;
};

/// How much more, or less, several changes do together than one by one: Σ whole / Σ parts over the same windows, the
/// error clustered by window. `parts` holds one vector of window sums per change.
Estimate interaction_ratio(std::span<const double> whole, std::span<const std::vector<double>> parts);

}  // namespace cerebellum
