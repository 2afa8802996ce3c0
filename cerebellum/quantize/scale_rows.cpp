#include "cerebellum/quantize/scale_rows.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cerebellum/core/error.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/quantize/quantize_tensor.h"

namespace cerebellum {

namespace {

bool is_floating(ggml_type type) {
    return type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16;
}

bool is_vector(const TensorInfo& tensor) {
    return tensor.n_rows() == 1;
}

void store(ggml_type type, std::span<const float> values, std::byte* out) {
    const auto n = static_cast<std::int64_t>(values.size());
    if (type == GGML_TYPE_F32)
        std::memcpy(out, values.data(), values.size_bytes());
    else if (type == GGML_TYPE_F16)
        ggml_fp32_to_fp16_row(values.data(), reinterpret_cast<ggml_fp16_t*>(out), n);
    else
        ggml_fp32_to_bf16_row(values.data(), reinterpret_cast<ggml_bf16_t*>(out), n);
}

constexpr float largest_f16 = 65504.0f;

}  // namespace

void check_scaling(const TensorInfo& tensor, const TensorScaling& scaling) {
    if (!is_floating(tensor.type))
        throw Error(fmt::format("cannot scale the channels of {}: it is {}, and only F32, F16 and BF16 can be scaled",
                                tensor.name, type_name(tensor.type)));
    const auto n_outputs = is_vector(tensor) ? tensor.row_length() : tensor.shape[1];
    if ((!scaling.inputs.empty() && std::ssize(scaling.inputs) != tensor.row_length()) ||
        (!scaling.outputs.empty() && std::ssize(scaling.outputs) != n_outputs))
        throw Error(
            fmt::format("cannot scale the channels of {}: it has {} columns and makes {} channels, and there "
                        "are exponents for {} and {}",
                        tensor.name, tensor.row_length(), n_outputs, scaling.inputs.size(), scaling.outputs.size()));
}

void scale_rows(const TensorInfo& tensor, const TensorScaling& scaling, std::int64_t first_row,
                std::span<std::byte> rows) {
    const auto n = static_cast<std::size_t>(tensor.row_length());
    const auto row_bytes = ggml_row_size(tensor.type, tensor.row_length());
    std::vector<float> values(n), factors(n, 1.0f);
    for (std::size_t c = 0; c < scaling.inputs.size(); ++c) factors[c] = std::ldexp(1.0f, scaling.inputs[c]);
    if (is_vector(tensor))
        for (std::size_t c = 0; c < scaling.outputs.size(); ++c) factors[c] *= std::ldexp(1.0f, -scaling.outputs[c]);
    auto row = first_row;
    for (auto* at = rows.data(); at < rows.data() + rows.size(); at += row_bytes, ++row) {
        const auto output = static_cast<std::size_t>(row % tensor.shape[1]);
        const float of_row =
            is_vector(tensor) || scaling.outputs.empty() ? 1.0f : std::ldexp(1.0f, -scaling.outputs[output]);
        dequantize_rows(tensor.type, std::span(at, row_bytes), values);
        for (std::size_t c = 0; c < n; ++c) values[c] *= factors[c] * of_row;
        if (tensor.type == GGML_TYPE_F16 &&
            std::ranges::any_of(values, [](float value) { return std::fabs(value) > largest_f16; }))
            throw Error(
                fmt::format("cannot scale the channels of {}: its weights become too large for F16", tensor.name));
        store(tensor.type, values, at);
    }
}

std::vector<std::byte> scaled_data(const GgufFile& source, const TensorInfo& tensor, const TensorScaling& scaling) {
    check_scaling(tensor, scaling);
    const auto data = source.data(tensor);
    std::vector<std::byte> bytes(data.begin(), data.end());
    scale_rows(tensor, scaling, 0, bytes);
    return bytes;
}

void scale_importance(std::span<const std::int8_t> inputs, std::span<float> weights) {
    if (inputs.empty()) return;
    for (std::size_t i = 0; i < weights.size(); ++i)
        weights[i] = std::ldexp(weights[i], -2 * inputs[i % inputs.size()]);
}

void scale_moments(std::span<const std::int8_t> inputs, std::span<float> lower_triangle) {
    auto* next = lower_triangle.data();
    for (std::size_t i = 0; i < inputs.size(); ++i)
        for (std::size_t j = 0; j <= i; ++j, ++next) *next = std::ldexp(*next, -(inputs[i] + inputs[j]));
}

}  // namespace cerebellum
