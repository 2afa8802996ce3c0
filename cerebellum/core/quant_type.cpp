#include "cerebellum/core/quant_type.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "cerebellum/core/error.h"

namespace cerebellum {

std::string type_name(ggml_type type) {
    return ggml_type_name(type);
}

std::optional<ggml_type> parse_type(std::string_view name) {
    const auto same = [](char a, char b) {
        return std::tolower(static_cast<unsigned char>(a)) == std::tolower(static_cast<unsigned char>(b));
    };
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const auto type = static_cast<ggml_type>(i);
        const char* candidate = ggml_type_name(type);
        if (candidate == nullptr || ggml_blck_size(type) == 0) continue;  // removed types keep their number
        if (std::ranges::equal(std::string_view(candidate), name, same)) return type;
    }
    return std::nullopt;
}

std::uint64_t type_size_bytes(ggml_type type, std::int64_t row_length, std::int64_t rows) {
    if (!type_fits_row(type, row_length))
        throw Error(fmt::format("type {} cannot hold rows of {} weights: its blocks have {} weights", type_name(type),
                                row_length, ggml_blck_size(type)));
    return static_cast<std::uint64_t>(ggml_row_size(type, row_length)) * static_cast<std::uint64_t>(rows);
}

double bits_per_weight(ggml_type type) {
    return 8.0 * static_cast<double>(ggml_type_size(type)) / static_cast<double>(ggml_blck_size(type));
}

bool type_fits_row(ggml_type type, std::int64_t row_length) {
    return row_length % ggml_blck_size(type) == 0;
}

bool type_needs_imatrix(ggml_type type) {
    return ggml_quantize_requires_imatrix(type);
}

bool type_is_quantizable(ggml_type type) {
    // ggml_quantize_chunk knows the types that can be read back; the others (q8_1, q8_K) are for activations only.
    return type == GGML_TYPE_F16 || type == GGML_TYPE_BF16 || type == GGML_TYPE_F32 ||
           (ggml_is_quantized(type) && ggml_get_type_traits(type)->to_float != nullptr);
}

const std::vector<ggml_type>& default_types() {
    static const std::vector<ggml_type> types = [] {
        std::vector<ggml_type> list = {
            GGML_TYPE_Q8_0,   GGML_TYPE_Q6_K,    GGML_TYPE_Q5_K,    GGML_TYPE_Q5_1,   GGML_TYPE_Q5_0,
            GGML_TYPE_Q4_K,   GGML_TYPE_Q4_1,    GGML_TYPE_Q4_0,    GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS,
            GGML_TYPE_Q3_K,   GGML_TYPE_IQ3_S,   GGML_TYPE_IQ3_XXS, GGML_TYPE_Q2_K,   GGML_TYPE_IQ2_S,
            GGML_TYPE_IQ2_XS, GGML_TYPE_IQ2_XXS, GGML_TYPE_IQ1_M,   GGML_TYPE_IQ1_S,
        };
        std::ranges::stable_sort(list, std::greater<>{}, bits_per_weight);
        return list;
    }();
    return types;
}

}  // namespace cerebellum
