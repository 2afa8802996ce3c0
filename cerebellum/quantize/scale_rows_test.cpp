#include "cerebellum/quantize/scale_rows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "cerebellum/core/quant_type.h"
#include "cerebellum/gguf/gguf_support_test.h"
#include "cerebellum/quantize/quantize_tensor.h"
#include "cerebellum/replay/replay_support_test.h"
#include "cerebellum/replay/scalable_channels.h"

namespace cerebellum {
namespace {

using testing::error_of;
using ::testing::HasSubstr;
using testing::TemporaryFolder;
using testing::write_test_gguf;

constexpr int n_columns = 32, n_rows = 6;
constexpr float smallest_normal_f16 = 6.103515625e-5f;

class ScaledRows : public ::testing::TestWithParam<ggml_type> {
  protected:
    ScaledRows() {
        write_test_gguf(
            folder_ / "m.gguf",
            {{"matrix", GetParam(), {n_columns, n_rows, 2, 1}}, {"vector", GetParam(), {n_columns, 1, 1, 1}}},
            [](gguf_context*) {});
        file_.emplace(GgufFile::open(folder_ / "m.gguf"));
        std::mt19937 random(3);
        std::uniform_int_distribution<int> exponent(-3, 3);
        for (int i = 0; i < n_columns; ++i) of_columns_.push_back(static_cast<std::int8_t>(exponent(random)));
        for (int i = 0; i < n_rows; ++i) of_rows_.push_back(static_cast<std::int8_t>(exponent(random)));
    }
    std::vector<float> values(const std::string& name) const {
        const auto& tensor = *file_->find(name);
        return values(tensor, file_->data(tensor));
    }
    static std::vector<float> values(const TensorInfo& tensor, std::span<const std::byte> bytes) {
        std::vector<float> result(bytes.size() / ggml_type_size(tensor.type));
        dequantize_rows(tensor.type, bytes, result);
        return result;
    }
    /// Rows from `first` on, scaled.
    std::vector<float> scaled(const std::string& name, const TensorScaling& scaling, std::int64_t first = 0) const {
        const auto& tensor = *file_->find(name);
        const auto data =
            file_->data(tensor).subspan(static_cast<std::size_t>(first) * ggml_row_size(tensor.type, n_columns));
        std::vector<std::byte> bytes(data.begin(), data.end());
        check_scaling(tensor, scaling);
        scale_rows(tensor, scaling, first, bytes);
        return values(tensor, bytes);
    }

    TemporaryFolder folder_;
    std::optional<GgufFile> file_;
    std::vector<std::int8_t> of_columns_, of_rows_;
};

TEST_P(ScaledRows, have_columns_multiplied_and_rows_divided_exactly) {
    const auto before = values("matrix"), after = scaled("matrix", {of_rows_, of_columns_});
    ASSERT_EQ(before.size(), 2u * n_rows * n_columns);  // two experts
    for (std::size_t i = 0; i < before.size(); ++i) {
        const float up = std::ldexp(before[i], of_columns_[i % n_columns]);
        const float wanted = std::ldexp(up, -of_rows_[i / n_columns % n_rows]);
        if (GetParam() == GGML_TYPE_F16 && std::fabs(wanted) < smallest_normal_f16)
            ASSERT_NEAR(after[i], wanted, smallest_normal_f16 / 1024.0f) << i;
        else
            ASSERT_EQ(after[i], wanted) << i;
    }
    const auto from_row_4 = scaled("matrix", {of_rows_, of_columns_}, 4);
    EXPECT_TRUE(std::equal(from_row_4.begin(), from_row_4.end(), after.begin() + 4 * n_columns));
}

TEST_P(ScaledRows, of_a_vector_are_its_elements) {
    const auto before = values("vector"), after = scaled("vector", {of_columns_, {}});
    for (std::size_t i = 0; i < before.size(); ++i) ASSERT_EQ(after[i], std::ldexp(before[i], -of_columns_[i])) << i;
}

TEST_P(ScaledRows, need_an_exponent_for_every_channel) {
    const auto& matrix = *file_->find("matrix");
    EXPECT_THAT(error_of([&] { check_scaling(matrix, {of_columns_, {}}); }), HasSubstr("matrix"));
    EXPECT_THAT(error_of([&] { check_scaling(matrix, {{}, of_rows_}); }), HasSubstr("32 columns"));
}

INSTANTIATE_TEST_SUITE_P(Types, ScaledRows, ::testing::Values(GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16),
                         [](const auto& test) { return std::string(type_name(test.param)); });

TEST(ScaleRows, refuses_quantized_tensors_and_numbers_beyond_f16) {
    const TemporaryFolder folder;
    write_test_gguf(folder / "m.gguf", {{"q", GGML_TYPE_Q8_0, {32, 1, 1, 1}}, {"h", GGML_TYPE_F16, {32, 2, 1, 1}}},
                    [](gguf_context*) {});
    const auto file = GgufFile::open(folder / "m.gguf");
    const TensorScaling scaling{{}, std::vector<std::int8_t>(32, 24)};
    EXPECT_THAT(error_of([&] { check_scaling(*file.find("q"), scaling); }), HasSubstr("only F32, F16 and BF16"));
    const auto data = file.data(*file.find("h"));
    std::vector<std::byte> bytes(data.begin(), data.end());
    EXPECT_THAT(error_of([&] { scale_rows(*file.find("h"), scaling, 0, bytes); }), HasSubstr("too large for F16"));
}

TEST(ScaleRows, leave_what_a_model_computes_with_all_its_places_scaled) {
    const auto model = Model::load(testing::small_model());
    const auto source = GgufFile::open(testing::small_model());
    testing::ReplayedWindow window(model, testing::random_tokens(model, 32, 1));
    const auto logits = [&](std::span<const ChannelScaling> scalings) {
        std::map<std::string, std::vector<std::byte>> data;
        Substitutions substitutes;
        for (const auto& [name, scaling] : scaling_by_tensor(scalings)) {
            const auto& tensor = *source.find(name);
            data[name] = scaled_data(source, tensor, scaling);
            substitutes[name] = {tensor.type, data[name]};
        }
        return window.logits_from(0, substitutes);
    };
    std::vector<ChannelScaling> scalings;
    for (const auto& place : find_scalable_channels(window.topology())) {
        auto& scaling = scalings.emplace_back(ChannelScaling{place.producer, place.offsets, place.readers, {}});
        for (std::int64_t i = 0; i < place.n_channels; ++i)
            scaling.exponents.push_back(static_cast<std::int8_t>(i * 7 % 5 - 2));
    }
    const auto unscaled = window.logits_from(0);
    // But for weights and activations that become subnormal in F16.
    EXPECT_LT(testing::largest_change(unscaled, logits(scalings)), 1e-2);
    // Each of them matters: without the readers' part the model is another one.
    for (auto scaling : scalings) {
        scaling.readers.clear();
        EXPECT_GT(testing::largest_change(unscaled, logits({&scaling, 1})), 0.1) << scaling.producer;
    }
}

TEST(ScaleRows, statistics_of_inputs_follow_the_inputs) {
    constexpr std::size_t n = 5;
    const std::vector<std::int8_t> exponents = {1, -2, 0, 3, -1};
    std::mt19937 random(4);
    std::normal_distribution<float> normal;
    std::vector<float> squares(2 * n), moments(n * (n + 1) / 2), scaled_squares(2 * n), scaled_moments(moments.size());
    for (int token = 0; token < 50; ++token) {
        std::vector<float> x(n), y(n);
        for (std::size_t i = 0; i < n; ++i) y[i] = std::ldexp(x[i] = normal(random), -exponents[i]);
        const std::size_t expert = token % 2 == 0 ? 0 : n;
        for (std::size_t i = 0, at = 0; i < n; ++i) {
            squares[expert + i] += x[i] * x[i];
            scaled_squares[expert + i] += y[i] * y[i];
            for (std::size_t j = 0; j <= i; ++j, ++at) {
                moments[at] += x[i] * x[j];
                scaled_moments[at] += y[i] * y[j];
            }
        }
    }
    scale_importance(exponents, squares);
    scale_moments(exponents, moments);
    EXPECT_EQ(squares, scaled_squares);
    EXPECT_EQ(moments, scaled_moments);
}

}  // namespace
}  // namespace cerebellum
