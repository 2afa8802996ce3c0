#include "cerebellum/core/encoding.h"

#include "cerebellum/core/quant_type.h"

namespace cerebellum {

namespace {

constexpr char separator = '+';

}  // namespace

std::string_view rounding_name(Rounding rounding) {
    return rounding == Rounding::feedback ? "feedback" : "ggml";
}

std::string type_name(const Encoding& encoding) {
    auto name = type_name(encoding.type);
    if (encoding.rounding != Rounding::ggml) (name += separator) += rounding_name(encoding.rounding);
    return name;
}

std::optional<Encoding> parse_encoding(std::string_view name) {
    const auto split = name.find(separator);
    const auto type = parse_type(name.substr(0, split));
    if (!type) return std::nullopt;
    if (split == std::string_view::npos) return Encoding(*type);
    if (name.substr(split + 1) != rounding_name(Rounding::feedback)) return std::nullopt;
    return Encoding(*type, Rounding::feedback);
}

std::string_view rounding_choice_name(RoundingChoice choice) {
    switch (choice) {
        case RoundingChoice::ggml:
            return "ggml";
        case RoundingChoice::feedback:
            return "feedback";
        case RoundingChoice::automatic:
            return "auto";
    }
    return "";
}

std::optional<RoundingChoice> parse_rounding_choice(std::string_view name) {
    for (const auto choice : {RoundingChoice::ggml, RoundingChoice::feedback, RoundingChoice::automatic})
        if (name == rounding_choice_name(choice)) return choice;
    return std::nullopt;
}

}  // namespace cerebellum
