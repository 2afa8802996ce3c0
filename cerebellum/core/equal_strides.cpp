#include "cerebellum/core/equal_strides.h"

#include "cerebellum/core/quant_type.h"

namespace cerebellum {

std::vector<std::pair<ggml_type, ggml_type>> pairs_of_equal_strides(std::int64_t row_length) {
    std::vector<ggml_type> types;
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const auto type = static_cast<ggml_type>(i);
        if (ggml_type_name(type) == nullptr || ggml_blck_size(type) == 0) continue;  // removed types keep their number
        if (type_is_quantizable(type) && type_fits_row(type, row_length)) types.push_back(type);
    }
    std::vector<std::pair<ggml_type, ggml_type>> pairs;
    for (std::size_t a = 0; a < types.size(); ++a)
        for (std::size_t b = a + 1; b < types.size(); ++b)
            if (ggml_blck_size(types[a]) == ggml_blck_size(types[b]) &&
                ggml_type_size(types[a]) == ggml_type_size(types[b]))
                pairs.emplace_back(types[a], types[b]);
    return pairs;
}

}  // namespace cerebellum
