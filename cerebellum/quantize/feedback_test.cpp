#include "cerebellum/quantize/feedback.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "cerebellum/core/error.h"
#include "cerebellum/core/quant_type.h"

namespace cerebellum {
namespace {

constexpr std::int64_t n_cols = 512;
constexpr std::int64_t n_rows = 37;  // no multiple of a batch

using Floats = std::vector<float>;
using Bytes = std::vector<std::byte>;

Floats normal_values(std::size_t count, unsigned seed, float deviation = 1.0f) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0.0f, deviation);
    Floats values(count);
    for (auto& value : values) value = normal(random);
    return values;
}

Floats identity() {
    Floats moments;
    for (std::int64_t i = 0; i < n_cols; ++i)
        for (std::int64_t j = 0; j <= i; ++j) moments.push_back(i == j ? 1.0f : 0.0f);
    return moments;
}

/// Σ x xᵀ of inputs that are sums of a few directions and noise, with columns of very different sizes.
Floats correlated(int n_tokens) {
    constexpr std::size_t n = n_cols, n_directions = 24;
    const auto directions = normal_values(n * n_directions, 3);
    const auto sizes = normal_values(n, 4);
    std::vector<double> square(n * n);
    for (int t = 0; t < n_tokens; ++t) {
        const auto seed = static_cast<unsigned>(100 + t);
        const auto mix = normal_values(n_directions, seed);
        auto x = normal_values(n, seed + 10000, 0.3f);
        for (std::size_t i = 0; i < n; ++i) {
            for (std::size_t k = 0; k < n_directions; ++k) x[i] += mix[k] * directions[k * n + i];
            x[i] *= std::exp(sizes[i]);
        }
        for (std::size_t i = 0; i < n; ++i)
            for (std::size_t j = 0; j <= i; ++j)
                square[i * n + j] += static_cast<double>(x[i]) * static_cast<double>(x[j]);
    }
    Floats moments;
    for (std::size_t i = 0; i < n; ++i)
        for (std::size_t j = 0; j <= i; ++j) moments.push_back(static_cast<float>(square[i * n + j]));
    return moments;
}

class FeedbackTest : public testing::TestWithParam<ggml_type> {
  protected:
    const BlockCodec& codec_ = *find_codec(GetParam());
    const std::size_t row_bytes_ = ggml_row_size(GetParam(), n_cols);
    const Floats weights_ = normal_values(static_cast<std::size_t>(n_rows * n_cols), 1, 0.05f);

    Bytes plain() const {
        Bytes bytes(row_bytes_ * n_rows);
        ggml_quantize_chunk(GetParam(), weights_.data(), bytes.data(), 0, n_rows, n_cols, nullptr);
        return bytes;
    }
    std::int64_t improve(Bytes& bytes, const InputMetric& metric, int sweeps, int threads = 1) const {
        const auto read = [&](std::int64_t row, std::span<float> out) {
            std::copy_n(weights_.begin() + row * n_cols, n_cols, out.begin());
        };
        return round_with_feedback(codec_, metric, read, bytes, threads, {sweeps});
    }
    Bytes improved(const InputMetric& metric, int sweeps, int threads = 1) const {
        auto bytes = plain();
        improve(bytes, metric, sweeps, threads);
        return bytes;
    }
    /// e H eᵀ of every row, from ggml's own reading of the bytes, in double precision.
    std::vector<double> objective(const Bytes& bytes, const Floats& moments) const {
        std::vector<double> result;
        Floats row(n_cols);
        for (std::int64_t r = 0; r < n_rows; ++r) {
            ggml_get_type_traits(GetParam())
                ->to_float(bytes.data() + static_cast<std::size_t>(r) * row_bytes_, row.data(), n_cols);
            std::vector<double> error;
            for (std::size_t i = 0; i < n_cols; ++i)
                error.push_back(static_cast<double>(row[i]) -
                                static_cast<double>(weights_[static_cast<std::size_t>(r * n_cols) + i]));
            double sum = 0.0;
            const float* h = moments.data();
            for (std::size_t i = 0; i < n_cols; ++i)
                for (std::size_t j = 0; j <= i; ++j)
                    sum += (i == j ? 1.0 : 2.0) * error[i] * error[j] * static_cast<double>(*h++);
            result.push_back(sum);
        }
        return result;
    }
    /// How far a stored weight is from the original one, and how far it would be with the best code and ggml's scales.
    std::pair<double, double> distances(const Bytes& bytes, const Bytes& ggmls, std::size_t row, std::size_t i) const {
        const auto size = static_cast<std::size_t>(codec_.block_size);
        const auto at = row * row_bytes_ + i / size * ggml_type_size(GetParam());
        std::vector<std::uint8_t> codes(size);
        codec_.read_codes(reinterpret_cast<const std::uint8_t*>(bytes.data() + at), codes.data());
        const auto scales = codec_.read_scales(reinterpret_cast<const std::uint8_t*>(ggmls.data() + at));
        const int group = static_cast<int>(i % size) / codec_.group_size;
        const auto distance = [&](float level) {
            const float stored = scales.group_scale(group) * level + scales.group_offset(group);
            return std::fabs(static_cast<double>(stored) - static_cast<double>(weights_[row * n_cols + i]));
        };
        double least = distance(codec_.levels.front());
        for (const float level : codec_.levels) least = std::min(least, distance(level));
        return {distance(codec_.levels[codes[i % size]]), least};
    }
    static double total(const std::vector<double>& values) {
        double sum = 0.0;
        for (const double value : values) sum += value;
        return sum;
    }
};

TEST_P(FeedbackTest, NoRowIsWorseThanGgmls) {
    const auto moments = correlated(300);
    const InputMetric metric(moments, n_cols);
    const auto before = objective(plain(), moments);
    for (const int sweeps : {0, 2}) {
        const auto after = objective(improved(metric, sweeps), moments);
        for (std::size_t r = 0; r < before.size(); ++r) EXPECT_LE(after[r], before[r]) << "row " << r;
        EXPECT_LT(total(after), 0.5 * total(before));
    }
}

TEST_P(FeedbackTest, SweepsImproveOnTheFirstPass) {
    const auto moments = correlated(300);
    const InputMetric metric(moments, n_cols);
    EXPECT_LT(total(objective(improved(metric, 2), moments)), total(objective(improved(metric, 0), moments)));
}

/// Whatever the codes were before; only the scales matter.
TEST_P(FeedbackTest, RoundsToNearestForTheIdentity) {
    const auto ggmls = plain();
    auto bytes = ggmls;
    const std::vector<std::uint8_t> lowest(static_cast<std::size_t>(codec_.block_size));
    for (std::size_t at = 0; at < bytes.size(); at += ggml_type_size(GetParam()))
        codec_.write_codes(reinterpret_cast<std::uint8_t*>(bytes.data() + at), lowest.data());
    EXPECT_EQ(improve(bytes, InputMetric(identity(), n_cols), 0), n_rows);
    for (std::size_t r = 0; r < n_rows; ++r)
        for (std::size_t i = 0; i < n_cols; ++i) {
            const auto [distance, least] = distances(bytes, ggmls, r, i);
            ASSERT_NEAR(distance, least, 1e-6) << "row " << r << ", column " << i;
        }
}

TEST_P(FeedbackTest, IsTheSameOnAnyNumberOfThreads) {
    const InputMetric metric(correlated(200), n_cols);
    EXPECT_EQ(improved(metric, 1, 1), improved(metric, 1, 5));
}

INSTANTIATE_TEST_SUITE_P(Types, FeedbackTest,
                         testing::Values(GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_Q8_0,
                                         GGML_TYPE_IQ4_NL, GGML_TYPE_Q2_K, GGML_TYPE_Q3_K, GGML_TYPE_Q4_K,
                                         GGML_TYPE_Q5_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_XS),
                         [](const auto& test) { return type_name(test.param); });

TEST(InputMetric, FactorsTheDampedMatrix) {
    const auto moments = correlated(40);  // fewer tokens than columns: singular without damping
    const InputMetric metric(moments, n_cols);
    ASSERT_TRUE(metric.usable());
    // Σ over positions of V_ip V_jp is H_ij again.
    for (const auto& [a, b] : {std::pair(500, 500), std::pair(500, 20), std::pair(3, 1)}) {
        double sum = 0.0, largest = 0.0;
        for (std::int64_t p = 0; p <= std::min(a, b); ++p) {
            const auto entry = [&](std::int64_t i) {
                return i == p ? 1.0 : static_cast<double>(metric.feedback(p)[i]);
            };
            const double product = static_cast<double>(metric.pivot(p)) * entry(a) * entry(b);
            sum += product;
            largest = std::max(largest, std::fabs(product));
        }
        EXPECT_NEAR(sum, static_cast<double>(metric.row(metric.column(a))[metric.column(b)]), 1e-4 * largest + 1e-2);
    }
}

TEST(InputMetric, IsUnusableWhereNothingWasSeenAndRefusesWhatIsNoNumber) {
    Floats moments(static_cast<std::size_t>(n_cols * (n_cols + 1) / 2), 0.0f);
    EXPECT_FALSE(InputMetric(moments, n_cols).usable());
    moments[0] = std::nanf("");
    EXPECT_THROW(InputMetric(moments, n_cols), Error);
}

}  // namespace
}  // namespace cerebellum
