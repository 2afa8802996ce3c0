#pragma once

#include <ggml.h>

#include <compare>
#include <optional>
#include <string>
#include <string_view>

namespace cerebellum {

/// How the integers of a quantized type are chosen. Neither the type nor its size nor its speed depends on it.
enum class Rounding {
    ggml,      ///< by ggml's own quantizer, each weight by itself
    feedback,  ///< with the second moments of the matrix's input (quantize/feedback.h)
};

/// What a tensor is stored as: one choice of the allocation, one row of the journal, one entry of a recipe. A type
/// alone stands for ggml's rounding; there is no conversion back, so that a rounding is never lost by accident.
struct Encoding {
    ggml_type type = GGML_TYPE_COUNT;
    Rounding rounding = Rounding::ggml;

    Encoding() = default;
    Encoding(ggml_type of_type, Rounding with = Rounding::ggml) : type(of_type), rounding(with) {}

    // NOLINTNEXTLINE(modernize-use-nullptr): clang-tidy 14 reads a 0 in it
    friend auto operator<=>(const Encoding&, const Encoding&) = default;
};

/// "q4_K", or "q4_K+feedback".
std::string type_name(const Encoding& encoding);
/// Reads what type_name wrote; empty where it is neither.
std::optional<Encoding> parse_encoding(std::string_view name);
/// "ggml" or "feedback".
std::string_view rounding_name(Rounding rounding);

/// Which roundings a user allows.
enum class RoundingChoice {
    ggml,
    feedback,   ///< wherever the type and the tensor admit it, ggml's elsewhere
    automatic,  ///< either, tensor by tensor
};

/// "ggml", "feedback" or "auto"; empty for anything else.
std::optional<RoundingChoice> parse_rounding_choice(std::string_view name);
std::string_view rounding_choice_name(RoundingChoice choice);

}  // namespace cerebellum
