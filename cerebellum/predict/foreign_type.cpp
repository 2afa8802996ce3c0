#include "cerebellum/predict/foreign_type.h"

#include <algorithm>
#include <cctype>
#include <string>

#include "cerebellum/core/quant_type.h"

namespace cerebellum {

namespace {

struct ForkType {
    std::string_view name;
    double bits_per_weight;
    bool ternary = false;
};

/// Block sizes in ik_llama.cpp's ggml/src/ggml-common.h; the rows' own scales, a few bytes each, are left out. ggml
/// cannot be asked about these.
constexpr ForkType fork_types[] = {
    {"iq1_kt", 1.75},   {"iq2_kt", 2.125}, {"iq3_kt", 3.125}, {"iq4_kt", 4.0},         {"iq2_ks", 2.1875},
    {"iq3_ks", 3.1875}, {"iq4_ks", 4.25},  {"iq4_kss", 4.0},  {"iq5_ks", 5.25},        {"iq2_kl", 2.6875},
    {"iq2_k", 2.375},   {"iq3_k", 3.4375}, {"iq4_k", 4.5},    {"iq5_k", 5.5},          {"iq6_k", 6.625},
    {"q6_0", 6.5},      {"q8_kv", 8.0},    {"iq1_s_r4", 1.5}, {"iq1_bn", 1.625, true}, {"iq2_bn", 2.0, true},
};

}  // namespace

std::optional<ForeignType> parse_foreign_type(std::string_view name) {
    std::string lower(name);
    std::ranges::transform(lower, lower.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    if (const auto type = parse_type(lower)) return ForeignType{type, bits_per_weight(*type), false};
    const auto* found = std::ranges::find(fork_types, std::string_view(lower), &ForkType::name);
    if (found != std::end(fork_types)) return ForeignType{std::nullopt, found->bits_per_weight, found->ternary};
    for (const std::string_view variant : {"_r4", "_r8", "_r16"})
        if (lower.ends_with(variant)) return parse_foreign_type(lower.substr(0, lower.size() - variant.size()));
    return std::nullopt;
}

}  // namespace cerebellum
