#include "cerebellum/evaluate/proportions.h"

#include <algorithm>
#include <boost/math/distributions/binomial.hpp>
#include <cmath>

namespace cerebellum {

Interval wilson_interval(int successes, int trials) {
    if (trials <= 0) return {0.0, 1.0};
    constexpr double z = 1.959963984540054;
    const double n = trials, share = successes / n;
    const double center = (share + z * z / (2.0 * n)) / (1.0 + z * z / n);
    const double half = z / (1.0 + z * z / n) * std::sqrt(share * (1.0 - share) / n + z * z / (4.0 * n * n));
    return {std::max(0.0, center - half), std::min(1.0, center + half)};
}

double mcnemar_p(int only_first, int only_second) {
    const int n = only_first + only_second;
    if (n == 0) return 1.0;
    const boost::math::binomial_distribution<double> chance(n, 0.5);
    return std::min(1.0, 2.0 * boost::math::cdf(chance, std::min(only_first, only_second)));
}

}  // namespace cerebellum
