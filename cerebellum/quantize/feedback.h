#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "cerebellum/quantize/block_codec.h"
#include "cerebellum/quantize/input_metric.h"

namespace cerebellum {

struct FeedbackOptions {
    /// Passes over all columns behind the first one: scales are fitted to the integers, then each integer again to all
    /// others. With none the scales stay ggml's.
    int sweeps = 2;
};

/// Writes the weights of one row, as floats.
using RowReader = std::function<void(std::int64_t row, std::span<float> weights)>;

/// Chooses the integers of rows that ggml has quantized again, so that the matrix's output changes less: column after
/// column, each with the error that those before it have left (GPTQ, LDLQ), in ggml's blocks with ggml's scales; then
/// sweeps that fit scales and integers to each other. `rows` holds the rows as ggml made them and then the new ones. A
/// row whose e H eᵀ (H without damping) does not fall stays as it is. Returns how many rows did change.
///
/// Rows do not depend on each other, and neither on `threads`.
std::int64_t round_with_feedback(const BlockCodec& codec, const InputMetric& metric, const RowReader& read_row,
                                 std::span<std::byte> rows, int threads, const FeedbackOptions& options = {});

}  // namespace cerebellum
