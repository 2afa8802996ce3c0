#include "cerebellum/calibrate/input_sums.h"

#include <ggml-cpu.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "cerebellum/replay/device.h"

namespace cerebellum {
namespace {

/// Activations [n, rows, parts] in rows that are longer than they need to be, of very different sizes by column.
class InputSums : public ::testing::Test {
  protected:
    static constexpr std::int64_t n = 24, rows = 40, parts = 3;

    InputSums() : context_(make_tensor_context(64, 64)), backend_(ggml_backend_cpu_init(), ggml_backend_free) {
        ggml_backend_cpu_set_n_threads(backend_.get(), 1);
        auto* whole = ggml_new_tensor_3d(context_.get(), GGML_TYPE_F32, n + 8, rows, parts);
        buffer_.reset(ggml_backend_alloc_ctx_tensors(context_.get(), backend_.get()));
        std::vector<float> values(static_cast<std::size_t>(ggml_nelements(whole)), NAN);
        std::mt19937 random(3);
        std::normal_distribution<float> normal;
        for (std::int64_t p = 0; p < parts; ++p)
            for (std::int64_t r = 0; r < rows; ++r)
                for (std::int64_t c = 0; c < n; ++c)
                    values[static_cast<std::size_t>((p * rows + r) * (n + 8) + c)] =
                        std::exp(0.5F * static_cast<float>(c)) * normal(random);
        ggml_backend_tensor_set(whole, values.data(), 0, ggml_nbytes(whole));
        activations_ = ggml_view_3d(context_.get(), whole, n, rows, parts, whole->nb[1], whole->nb[2], 0);
        ggml_backend_view_init(activations_);
        at_ = [values](std::int64_t part, std::int64_t row, std::int64_t column) {
            return static_cast<double>(values[static_cast<std::size_t>((part * rows + row) * (n + 8) + column)]);
        };
    }

    std::vector<float> computed(ggml_tensor* node) {
        auto* graph = ggml_new_graph_custom(context_.get(), 64, false);
        ggml_build_forward_expand(graph, node);
        const GgmlBuffer buffer(ggml_backend_alloc_ctx_tensors(context_.get(), backend_.get()));
        EXPECT_EQ(ggml_backend_graph_compute(backend_.get(), graph), GGML_STATUS_SUCCESS);
        std::vector<float> result(static_cast<std::size_t>(ggml_nelements(node)));
        ggml_backend_tensor_get(node, result.data(), 0, ggml_nbytes(node));
        return result;
    }
    std::vector<double> expected_squares() const {
        std::vector<double> sums(static_cast<std::size_t>(n * parts));
        for (std::int64_t p = 0; p < parts; ++p)
            for (std::int64_t r = 0; r < rows; ++r)
                for (std::int64_t c = 0; c < n; ++c)
                    sums[static_cast<std::size_t>(p * n + c)] += at_(p, r, c) * at_(p, r, c);
        return sums;
    }

    GgmlContext context_;
    std::unique_ptr<ggml_backend, void (*)(ggml_backend*)> backend_;
    GgmlBuffer buffer_;
    ggml_tensor* activations_ = nullptr;
    std::function<double(std::int64_t, std::int64_t, std::int64_t)> at_;
};

TEST_F(InputSums, squares_are_summed_by_column_and_part) {
    auto* node = squared_sum_nodes(context_.get(), activations_);
    const auto sums = computed(node);
    const auto expected = expected_squares();
    ASSERT_EQ(sums.size(), expected.size());
    EXPECT_EQ(node->ne[1], n);
    EXPECT_EQ(node->ne[2], parts);
    for (std::size_t i = 0; i < sums.size(); ++i)
        EXPECT_NEAR(static_cast<double>(sums[i]), expected[i], 1e-6 * expected[i]) << i;
}

TEST_F(InputSums, of_somebody_else_s_tensors_are_the_same_wherever_these_lie) {
    SquaredSums sums;
    const auto expected = expected_squares();
    const auto first = sums.of(*activations_);
    ASSERT_EQ(first.size(), expected.size());
    for (std::size_t i = 0; i < first.size(); ++i)
        EXPECT_NEAR(static_cast<double>(first[i]), expected[i], 1e-6 * expected[i]) << i;
    // The same shape at another place: the graph is used again.
    const auto more = make_tensor_context(2);
    auto* whole = ggml_new_tensor_3d(more.get(), GGML_TYPE_F32, n + 8, rows, parts);
    const GgmlBuffer buffer(ggml_backend_alloc_ctx_tensors(more.get(), backend_.get()));
    std::vector<float> ones(static_cast<std::size_t>(ggml_nelements(whole)), 2.0F);
    ggml_backend_tensor_set(whole, ones.data(), 0, ggml_nbytes(whole));
    auto* view = ggml_view_3d(more.get(), whole, n, rows, parts, whole->nb[1], whole->nb[2], 0);
    ggml_backend_view_init(view);
    for (const float sum : sums.of(*view)) EXPECT_EQ(sum, 4.0F * static_cast<float>(rows));
    EXPECT_EQ(sums.of(*activations_), first);
}

TEST_F(InputSums, outer_products_are_those_of_all_rows_of_all_parts) {
    const auto sums = computed(outer_product_nodes(context_.get(), activations_));
    ASSERT_EQ(sums.size(), static_cast<std::size_t>(n * n));
    double worst = 0.0;
    for (std::int64_t i = 0; i < n; ++i)
        for (std::int64_t j = 0; j < n; ++j) {
            double sum = 0.0, scale = 0.0;
            for (std::int64_t p = 0; p < parts; ++p)
                for (std::int64_t r = 0; r < rows; ++r) {
                    sum += at_(p, r, i) * at_(p, r, j);
                    scale += std::fabs(at_(p, r, i) * at_(p, r, j));
                }
            const auto got = static_cast<double>(sums[static_cast<std::size_t>(i * n + j)]);
            worst = std::max(worst, std::fabs(got - sum) / scale);
        }
    EXPECT_LT(worst, 1e-6);
    EXPECT_GT(worst, 0.0);
}

}  // namespace
}  // namespace cerebellum
