#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cerebellum/core/channel_scaling.h"
#include "cerebellum/gguf/gguf_file.h"

namespace cerebellum {

/// Throws Error, naming the tensor, unless it can be scaled so: a type of floating-point numbers, and as many exponents
/// as it has channels.
void check_scaling(const TensorInfo& tensor, const TensorScaling& scaling);

/// Scales rows [first_row, …) of a tensor where they lie, in the tensor's own type. Exact, but for F16 numbers that
/// become subnormal. Throws Error where one becomes too large for the type.
void scale_rows(const TensorInfo& tensor, const TensorScaling& scaling, std::int64_t first_row,
                std::span<std::byte> rows);

/// The data of a whole tensor of `source`, scaled. Throws Error as both do.
std::vector<std::byte> scaled_data(const GgufFile& source, const TensorInfo& tensor, const TensorScaling& scaling);

/// Importance weights (mean squares of the inputs) of a tensor whose inputs are divided so.
void scale_importance(std::span<const std::int8_t> inputs, std::span<float> weights);

/// The lower triangle of Σ x xᵀ of inputs that are divided so.
void scale_moments(std::span<const std::int8_t> inputs, std::span<float> lower_triangle);

}  // namespace cerebellum
