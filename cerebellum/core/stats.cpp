#include "cerebellum/core/stats.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>
#include <numeric>

namespace cerebellum {

Estimate clustered_mean(std::span<const double> sums, std::span<const double> counts) {
    assert(sums.size() == counts.size());
    constexpr double nan = std::numeric_limits<double>::quiet_NaN();
    const double total = std::accumulate(counts.begin(), counts.end(), 0.0);
    if (total <= 0.0) return {nan, nan};
    const double mean = std::accumulate(sums.begin(), sums.end(), 0.0) / total;
    const auto windows = static_cast<double>(sums.size());
    if (sums.size() < 2) return {mean, nan};
    double squares = 0.0;
    for (std::size_t w = 0; w < sums.size(); ++w) {
        const double residual = sums[w] - mean * counts[w];
        squares += residual * residual;
    }
    return {mean, std::sqrt(windows / (windows - 1.0) * squares) / total};
}

namespace {

std::vector<double> ranks(std::span<const double> values) {
    std::vector<std::size_t> order(values.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::sort(order, {}, [&](std::size_t i) { return values[i]; });
    std::vector<double> result(values.size());
    for (std::size_t i = 0; i < order.size();) {
        std::size_t j = i;
        while (j < order.size() && values[order[j]] == values[order[i]]) ++j;
        const double rank = 0.5 * static_cast<double>(i + j - 1);
        for (std::size_t k = i; k < j; ++k) result[order[k]] = rank;
        i = j;
    }
    return result;
}

}  // namespace

double spearman(std::span<const double> x, std::span<const double> y) {
    assert(x.size() == y.size());
    const auto a = ranks(x), b = ranks(y);
    const double center = 0.5 * (static_cast<double>(x.size()) - 1.0);
    double ab = 0.0, aa = 0.0, bb = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        ab += (a[i] - center) * (b[i] - center);
        aa += (a[i] - center) * (a[i] - center);
        bb += (b[i] - center) * (b[i] - center);
    }
    return ab / std::sqrt(aa * bb);
}

}  // namespace cerebellum
