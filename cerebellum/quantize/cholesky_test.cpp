#include "cerebellum/quantize/cholesky.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace cerebellum {
namespace {

/// X Xᵀ + I of random X, column by column.
std::vector<float> positive_definite(std::int64_t n, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> x(static_cast<std::size_t>(n * n)), a(x.size());
    for (float& value : x) value = normal(random);
    for (std::int64_t i = 0; i < n; ++i)
        for (std::int64_t j = 0; j < n; ++j) {
            double sum = i == j ? 1.0 : 0.0;
            for (std::int64_t k = 0; k < n; ++k)
                sum += static_cast<double>(x[static_cast<std::size_t>(i * n + k)]) *
                       static_cast<double>(x[static_cast<std::size_t>(j * n + k)]);
            a[static_cast<std::size_t>(j * n + i)] = static_cast<float>(sum);
        }
    return a;
}

/// Element by element, terms in the order of the columns: what the blocks, vectors and tiles must not change.
std::vector<float> one_by_one(std::vector<float> a, std::int64_t n) {
    const auto at = [&](std::int64_t i, std::int64_t j) -> float& { return a[static_cast<std::size_t>(j * n + i)]; };
    for (std::int64_t j = 0; j < n; ++j)
        for (std::int64_t i = j; i < n; ++i) {
            for (std::int64_t k = 0; k < j; ++k) {
                volatile float product = at(i, k) * at(j, k);  // a compiler may not fuse what is stored in between
                at(i, j) -= product;
            }
            at(i, j) = i == j ? std::sqrt(at(i, j)) : at(i, j) / at(j, j);
        }
    return a;
}

class CholeskyTest : public testing::TestWithParam<std::int64_t> {};

TEST_P(CholeskyTest, sums_in_the_order_of_the_columns_whatever_the_size) {
    const auto n = GetParam();
    auto factored = positive_definite(n, 1);
    const auto expected = one_by_one(factored, n);
    ASSERT_TRUE(factor_cholesky(factored, n));
    for (std::int64_t j = 0; j < n; ++j)
        for (std::int64_t i = j; i < n; ++i) {
            const auto at = static_cast<std::size_t>(j * n + i);
            ASSERT_EQ(factored[at], expected[at]) << "row " << i << ", column " << j;
        }
}

INSTANTIATE_TEST_SUITE_P(Sizes, CholeskyTest, testing::Values(1, 2, 15, 63, 64, 65, 127, 200, 320, 389),
                         [](const auto& size) { return "n" + std::to_string(size.param); });

TEST(Cholesky, gives_the_matrix_back) {
    constexpr std::int64_t n = 150;
    const auto a = positive_definite(n, 2);
    auto l = a;
    ASSERT_TRUE(factor_cholesky(l, n));
    for (std::int64_t i = 0; i < n; ++i)
        for (std::int64_t j = 0; j <= i; ++j) {
            double sum = 0.0;
            for (std::int64_t k = 0; k <= j; ++k)
                sum += static_cast<double>(l[static_cast<std::size_t>(k * n + i)]) *
                       static_cast<double>(l[static_cast<std::size_t>(k * n + j)]);
            EXPECT_NEAR(sum, a[static_cast<std::size_t>(j * n + i)], 1e-3) << i << ", " << j;
        }
}

TEST(Cholesky, refuses_what_is_not_positive_definite) {
    std::vector<float> singular = {1, 1, 1, 1}, negative = {-1}, no_number = {std::nanf("")};
    EXPECT_FALSE(factor_cholesky(singular, 2));
    EXPECT_FALSE(factor_cholesky(negative, 1));
    EXPECT_FALSE(factor_cholesky(no_number, 1));
}

}  // namespace
}  // namespace cerebellum
