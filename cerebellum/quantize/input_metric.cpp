#include "cerebellum/quantize/input_metric.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <numeric>

#include "cerebellum/core/error.h"
#include "cerebellum/quantize/cholesky.h"

namespace cerebellum {

namespace {

/// Part of the mean of H's diagonal that is added to it, so that it can be factored and few tokens are not believed too
/// much.
constexpr double relative_damping = 0.01;

}  // namespace

InputMetric::InputMetric(std::span<const float> moments, std::int64_t n_cols) : n_(n_cols) {
    assert(moments.size() == static_cast<std::size_t>(n_ * (n_ + 1) / 2));
    h_.resize(static_cast<std::size_t>(n_ * n_));
    double trace = 0.0;
    const float* next = moments.data();
    for (std::int64_t i = 0; i < n_; ++i) {
        for (std::int64_t j = 0; j <= i; ++j)
            h_[static_cast<std::size_t>(i * n_ + j)] = h_[static_cast<std::size_t>(j * n_ + i)] = *next++;
        trace += static_cast<double>(next[-1]);
    }
    if (!std::isfinite(trace)) throw Error("the second moments of a matrix's input are not finite; collect them again");
    if (trace <= 0.0) return;

    order_.resize(static_cast<std::size_t>(n_));
    std::iota(order_.begin(), order_.end(), 0);
    std::ranges::stable_sort(order_, {}, [&](std::int64_t column) { return row(column)[column]; });
    double added = 0.0;
    for (double damping = relative_damping * trace / static_cast<double>(n_); !usable_; damping *= 10.0) {
        for (std::int64_t i = 0; i < n_; ++i)
            h_[static_cast<std::size_t>(i * n_ + i)] += static_cast<float>(damping - added);
        added = damping;
        usable_ = factorize();
    }
    damping_ = static_cast<float>(added);
}

bool InputMetric::factorize() {
    v_.resize(h_.size());
    // Column by column: what lies behind a position is what has been rounded before it.
    for (std::int64_t j = 0; j < n_; ++j)
        for (std::int64_t i = j; i < n_; ++i) v_[static_cast<std::size_t>(j * n_ + i)] = row(column(j))[column(i)];
    if (!factor_cholesky(v_, n_)) return false;
    pivots_.resize(static_cast<std::size_t>(n_));
    for (std::int64_t j = 0; j < n_; ++j) {
        float* const factors = v_.data() + j * n_;
        const float diagonal = factors[j];
        pivots_[static_cast<std::size_t>(j)] = diagonal * diagonal;
        for (std::int64_t i = j; i < n_; ++i) factors[i] /= diagonal;
    }
    return true;
}

}  // namespace cerebellum
