#pragma once

#include <ggml.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace cerebellum {

/// All pairs of types that ggml can quantize to whose blocks have as many weights and bytes as each other's, and that
/// rows of this length can be stored in: tensors of one shape in either have the same strides. Asked of ggml.
std::vector<std::pair<ggml_type, ggml_type>> pairs_of_equal_strides(std::int64_t row_length);

}  // namespace cerebellum
