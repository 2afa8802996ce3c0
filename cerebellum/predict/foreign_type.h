#pragma once

#include <ggml.h>

#include <optional>
#include <string_view>

namespace cerebellum {

/// A quantization type as other tools name it.
struct ForeignType {
    /// Empty for types that ggml does not have.
    std::optional<ggml_type> type;
    double bits_per_weight = 0.0;
    /// Made for ternary weights (BitNet): what it does to others says nothing about other types.
    bool ternary = false;
};

/// Types of ggml and of its fork ik_llama.cpp. The fork's row-interleaved variants (_r4, _r8, _r16) hold the same
/// numbers as what they are made of, except for iq1_s_r4. Empty for names that are neither.
std::optional<ForeignType> parse_foreign_type(std::string_view name);

}  // namespace cerebellum
