#include "cerebellum/quantize/quantize_tensor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "cerebellum/core/quant_type.h"
#include "cerebellum/gguf/gguf_support_test.h"

namespace cerebellum {
namespace {

using ::testing::AllOf;
using testing::error_of;
using ::testing::HasSubstr;

struct Example {
    TensorInfo tensor;
    std::vector<float> floats;
    std::vector<float> weights;
    std::span<const std::byte> bytes() const { return std::as_bytes(std::span(floats)); }
};

/// Three matrices of experts with importance weights of their own.
Example experts() {
    Example example;
    example.tensor.name = "blk.0.ffn_up_exps.weight";
    example.tensor.shape = {256, 13, 3, 1};
    example.tensor.n_dims = 3;
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    example.floats.resize(256 * 13 * 3);
    for (float& value : example.floats) value = normal(random);
    example.weights.resize(256 * 3);
    for (float& value : example.weights) value = std::exp(normal(random));
    example.tensor.size_bytes = example.floats.size() * sizeof(float);
    return example;
}

TEST(QuantizeTensor, equals_ggml_matrix_by_matrix) {
    const Example example = experts();
    auto types = default_types();
    types.insert(types.end(), {GGML_TYPE_F16, GGML_TYPE_BF16});
    for (const ggml_type type : types) {
        const auto size = type_size_bytes(type, 256, 13 * 3);
        std::vector<std::byte> expected(size);
        for (std::int64_t expert = 0; expert < 3; ++expert)
            ggml_quantize_chunk(type, example.floats.data() + expert * 13 * 256,
                                expected.data() + static_cast<std::size_t>(expert) * size / 3, 0, 13, 256,
                                example.weights.data() + expert * 256);
        EXPECT_TRUE(quantize_tensor(example.tensor, example.bytes(), type, example.weights, 1) == expected)
            << type_name(type);
        EXPECT_TRUE(quantize_tensor(example.tensor, example.bytes(), type, example.weights, 4) == expected)
            << type_name(type);
    }
}

TEST(QuantizeTensor, slabs_make_no_difference) {
    const Example example = experts();
    for (const ggml_type type : {GGML_TYPE_Q4_K, GGML_TYPE_IQ2_XS, GGML_TYPE_Q5_1}) {
        const auto whole = quantize_tensor(example.tensor, example.bytes(), type, example.weights, 2);
        const std::size_t row_bytes = type_size_bytes(type, 256, 1);
        std::vector<std::byte> joined(whole.size());
        for (std::int64_t row = 0; row < 39; row += 10) {
            const std::int64_t n_rows = std::min<std::int64_t>(10, 39 - row);
            quantize_rows(example.tensor, example.bytes(), type, example.weights, row, n_rows,
                          std::span(joined).subspan(static_cast<std::size_t>(row) * row_bytes,
                                                    static_cast<std::size_t>(n_rows) * row_bytes),
                          2);
        }
        EXPECT_TRUE(joined == whole) << type_name(type);
    }
}

TEST(QuantizeTensor, quantized_sources_are_read_back_first) {
    const Example example = experts();
    TensorInfo halves = example.tensor;
    halves.type = GGML_TYPE_Q8_0;
    const auto stored = quantize_tensor(example.tensor, example.bytes(), GGML_TYPE_Q8_0, {}, 2);
    halves.size_bytes = stored.size();
    EXPECT_TRUE(quantize_tensor(halves, stored, GGML_TYPE_Q8_0, {}, 2) == stored) << "same type: copied";
    std::vector<float> floats(example.floats.size());
    dequantize_rows(GGML_TYPE_Q8_0, stored, floats);
    std::vector<std::byte> expected(type_size_bytes(GGML_TYPE_Q4_0, 256, 39));
    ggml_quantize_chunk(GGML_TYPE_Q4_0, floats.data(), expected.data(), 0, 39, 256, nullptr);
    EXPECT_TRUE(quantize_tensor(halves, stored, GGML_TYPE_Q4_0, {}, 2) == expected);
}

TEST(QuantizeTensor, integers_are_copied_and_nothing_else) {
    const std::vector<std::int32_t> numbers(64, -1);  // as floats these would be NaN
    TensorInfo tensor;
    tensor.name = "blk.0.ffn_gate_tid2eid.weight";
    tensor.type = GGML_TYPE_I32;
    tensor.shape = {32, 2, 1, 1};
    tensor.size_bytes = 256;
    const auto bytes = std::as_bytes(std::span(numbers));
    EXPECT_TRUE(std::ranges::equal(quantize_tensor(tensor, bytes, GGML_TYPE_I32, {}, 1), bytes));
    EXPECT_THAT(error_of([&] { quantize_tensor(tensor, bytes, GGML_TYPE_Q8_0, {}, 1); }),
                HasSubstr("holds no weights"));
}

TEST(QuantizeTensor, says_what_is_wrong) {
    Example example = experts();
    const auto quantize = [&](ggml_type type, std::span<const float> weights) {
        return error_of([&] { quantize_tensor(example.tensor, example.bytes(), type, weights, 2); });
    };
    for (const ggml_type type : {GGML_TYPE_IQ2_XXS, GGML_TYPE_IQ2_XS, GGML_TYPE_IQ1_S})
        EXPECT_THAT(quantize(type, {}),
                    AllOf(HasSubstr(example.tensor.name), HasSubstr(type_name(type)), HasSubstr("importance matrix")));
    EXPECT_THAT(quantize(GGML_TYPE_Q8_K, {}), HasSubstr("no quantizer"));
    EXPECT_THAT(quantize(GGML_TYPE_Q4_K, std::vector<float>(256)), HasSubstr("256 importance weights"));
    example.tensor.shape = {96, 13, 8, 1};
    EXPECT_THAT(quantize(GGML_TYPE_Q4_K, {}), HasSubstr("no multiple of 256"));
    example = experts();
    for (const float value : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e20f}) {
        example.floats[256 * 30 + 3] = value;
        for (const ggml_type type : {GGML_TYPE_IQ2_XXS, GGML_TYPE_IQ3_S, GGML_TYPE_IQ1_M, GGML_TYPE_Q4_K})
            EXPECT_THAT(quantize(type, example.weights), HasSubstr("row 30"));
    }
    example.floats[256 * 30 + 3] = 1e6f;
    EXPECT_THAT(quantize(GGML_TYPE_F16, {}), HasSubstr("row 30 holds the value 1000000"));
    EXPECT_NO_THROW(quantize_tensor(example.tensor, example.bytes(), GGML_TYPE_BF16, {}, 2));
    example.floats[256 * 30 + 3] = 65504.0f;
    EXPECT_NO_THROW(quantize_tensor(example.tensor, example.bytes(), GGML_TYPE_F16, {}, 2));
}

TEST(QuantizeTensor, zero_weights_and_zero_importance_are_stored) {
    Example example = experts();
    std::fill(example.floats.begin(), example.floats.begin() + 256 * 13, 0.0f);
    std::fill(example.weights.begin() + 256, example.weights.begin() + 512, 0.0f);
    for (const ggml_type type : default_types())
        EXPECT_NO_THROW(quantize_tensor(example.tensor, example.bytes(), type, example.weights, 2)) << type_name(type);
}

}  // namespace
}  // namespace cerebellum
