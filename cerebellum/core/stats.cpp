#include "cerebellum/core/stats.h"

#include <algorithm>
#include <boost/math/distributions/normal.hpp>
#include <boost/math/distributions/students_t.hpp>
#include <cassert>
#include <cmath>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <utility>

namespace cerebellum {

void to_json(nlohmann::json& json, const Estimate& estimate) {
    json = {{"mean", estimate.mean}, {"error", estimate.error}};
}

namespace {

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

}  // namespace

Estimate clustered_mean(std::span<const double> sums, std::span<const double> counts) {
    assert(sums.size() == counts.size());
    ClusteredSums all;
    for (std::size_t w = 0; w < sums.size(); ++w) all.add(sums[w], counts[w]);
    return all.mean();
}

void ClusteredSums::add(double sum, double count) {
    ClusteredSums one;
    one.windows_ = 1.0;
    one.mean_sum_ = sum;
    one.mean_count_ = count;
    merge(one);
}

void ClusteredSums::merge(const ClusteredSums& other) {
    if (other.windows_ == 0.0) return;
    const double total = windows_ + other.windows_;
    const double share = other.windows_ / total;
    const double sum_step = other.mean_sum_ - mean_sum_, count_step = other.mean_count_ - mean_count_;
    const double between = windows_ * share;
    sum_sum_ += other.sum_sum_ + between * sum_step * sum_step;
    sum_count_ += other.sum_count_ + between * sum_step * count_step;
    count_count_ += other.count_count_ + between * count_step * count_step;
    mean_sum_ += share * sum_step;
    mean_count_ += share * count_step;
    windows_ = total;
}

Estimate ClusteredSums::mean() const {
    const double total = windows_ * mean_count_;
    if (!(total > 0.0)) return {nan, nan, nan};
    const double mean = mean_sum_ / mean_count_;
    if (windows_ < 2.0) return {mean, nan, 0.0};
    // The residuals sum − mean·count have mean zero, so their squares are the centred moments'.
    const double squares = std::max(0.0, sum_sum_ - 2.0 * mean * sum_count_ + mean * mean * count_count_);
    return {mean, std::sqrt(windows_ / (windows_ - 1.0) * squares) / total, windows_ - 1.0};
}

Estimate paired_difference(std::span<const double> a, std::span<const double> b, std::span<const double> counts) {
    assert(a.size() == counts.size() && b.size() == counts.size());
    ClusteredSums differences;
    for (std::size_t w = 0; w < a.size(); ++w) differences.add(a[w] - b[w], counts[w]);
    return differences.mean();
}

double t_cumulative(double x, double dof) {
    if (std::isnan(x)) return nan;
    if (std::isinf(x)) return x > 0.0 ? 1.0 : 0.0;
    return std::isinf(dof) ? cdf(boost::math::normal(), x) : cdf(boost::math::students_t(dof), x);
}

double t_quantile(double probability, double dof) {
    assert(probability > 0.0 && probability < 1.0 && dof > 0.0);
    return std::isinf(dof) ? quantile(boost::math::normal(), probability)
                           : quantile(boost::math::students_t(dof), probability);
}

Interval confidence_interval(const Estimate& estimate, double level) {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    if (!std::isfinite(estimate.error) || !(estimate.dof > 0.0)) return {-infinity, infinity};
    const double half = estimate.error > 0.0 ? t_quantile(0.5 + 0.5 * level, estimate.dof) * estimate.error : 0.0;
    return {estimate.mean - half, estimate.mean + half};
}

double p_greater(const Estimate& estimate, double than) {
    if (!std::isfinite(estimate.error) || !(estimate.dof > 0.0)) return 1.0;
    const double difference = estimate.mean - than;
    if (estimate.error == 0.0) return difference > 0.0 ? 0.0 : 1.0;
    return t_cumulative(-difference / estimate.error, estimate.dof);
}

double p_less(const Estimate& estimate, double than) {
    return p_greater({-estimate.mean, estimate.error, estimate.dof}, -than);
}

namespace {

/// Indices by rising p-value, NaN as 1, and these values.
std::pair<std::vector<std::size_t>, std::vector<double>> by_significance(std::span<const double> p_values) {
    std::vector<double> p(p_values.begin(), p_values.end());
    for (auto& value : p)
        if (std::isnan(value)) value = 1.0;
    std::vector<std::size_t> order(p.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::stable_sort(order, {}, [&](std::size_t i) { return p[i]; });
    return {std::move(order), std::move(p)};
}

}  // namespace

std::vector<double> adjust_holm(std::span<const double> p_values) {
    auto [order, p] = by_significance(p_values);
    double largest = 0.0;
    for (std::size_t i = 0; i < order.size(); ++i) {
        auto& value = p[order[i]];
        largest = std::max(largest, std::min(1.0, static_cast<double>(order.size() - i) * value));
        value = largest;
    }
    return p;
}

std::vector<double> adjust_benjamini_hochberg(std::span<const double> p_values) {
    auto [order, p] = by_significance(p_values);
    double smallest = 1.0;
    for (std::size_t i = order.size(); i-- > 0;) {
        auto& value = p[order[i]];
        smallest = std::min(smallest, static_cast<double>(order.size()) / static_cast<double>(i + 1) * value);
        value = smallest;
    }
    return p;
}

namespace {

/// Which windows change their sign, one pattern after the other; the first changes none.
std::vector<std::vector<bool>> sign_patterns(std::size_t windows) {
    constexpr std::size_t most = 1024;
    std::vector<std::vector<bool>> patterns;
    const bool all = windows < 64 && (std::uint64_t{1} << windows) <= most;
    const std::size_t count = all ? std::size_t{1} << windows : most;
    std::mt19937_64 random(1);
    for (std::size_t i = 0; i < count; ++i) {
        auto& pattern = patterns.emplace_back(windows);
        for (std::size_t w = 0; w < windows; ++w) pattern[w] = all ? (i >> w & 1) != 0 : i > 0 && (random() >> 63) != 0;
    }
    return patterns;
}

double flipped_t(const std::vector<double>& row, const std::vector<bool>& flips) {
    const auto n = static_cast<double>(row.size());
    double sum = 0.0, squares = 0.0;
    for (std::size_t w = 0; w < row.size(); ++w) {
        sum += flips[w] ? -row[w] : row[w];
        squares += row[w] * row[w];
    }
    const double variance = (squares - sum * sum / n) / (n - 1.0);
    if (sum == 0.0) return 0.0;
    // Equal values but for rounding have no variance.
    if (!(variance > 1e-12 * squares / n)) return std::copysign(std::numeric_limits<double>::infinity(), sum);
    return sum / std::sqrt(n * variance);
}

}  // namespace

std::vector<double> adjust_by_sign_flips(std::span<const std::vector<double>> rows) {
    if (rows.empty() || rows.front().size() < 2) return std::vector<double>(rows.size(), 1.0);
    const auto patterns = sign_patterns(rows.front().size());
    std::vector<double> observed;
    for (const auto& row : rows) observed.push_back(flipped_t(row, patterns.front()));
    std::vector<std::size_t> order(rows.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::stable_sort(order, {}, [&](std::size_t i) { return observed[i]; });
    std::vector<std::size_t> exceeded(rows.size());
    for (const auto& pattern : patterns) {
        double largest = -std::numeric_limits<double>::infinity();
        for (const auto i : order) {
            largest = std::max(largest, flipped_t(rows[i], pattern));
            if (largest >= observed[i]) ++exceeded[i];
        }
    }
    std::vector<double> p(rows.size());
    double before = 0.0;
    for (std::size_t i = order.size(); i-- > 0;) {
        before = std::max(before, static_cast<double>(exceeded[order[i]]) / static_cast<double>(patterns.size()));
        p[order[i]] = before;
    }
    return p;
}

double expected_loss(const Estimate& gap) {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    if (!std::isfinite(gap.error) || !(gap.dof > 1.0)) return infinity;
    if (gap.error == 0.0) return std::max(0.0, -gap.mean);
    const double z = gap.mean / gap.error;
    const double tail = t_cumulative(-z, gap.dof);
    const double density = std::isinf(gap.dof)
                               ? pdf(boost::math::normal(), z)
                               : (gap.dof + z * z) / (gap.dof - 1.0) * pdf(boost::math::students_t(gap.dof), z);
    return gap.error * std::max(0.0, density - z * tail);
}

std::vector<double> antitonic_fit(std::span<const double> values, std::span<const double> weights) {
    assert(values.size() == weights.size());
    struct Pool {
        double value, weight;
        std::size_t size;
    };
    std::vector<Pool> pools;
    for (std::size_t i = 0; i < values.size(); ++i) {
        assert(weights[i] > 0.0);
        pools.push_back({values[i], weights[i], 1});
        while (pools.size() > 1 && pools[pools.size() - 2].value < pools.back().value) {
            const Pool last = pools.back();
            pools.pop_back();
            auto& pool = pools.back();
            pool.value = (pool.weight * pool.value + last.weight * last.value) / (pool.weight + last.weight);
            pool.weight += last.weight;
            pool.size += last.size;
        }
    }
    std::vector<double> fit;
    for (const auto& pool : pools) fit.insert(fit.end(), pool.size, pool.value);
    return fit;
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
