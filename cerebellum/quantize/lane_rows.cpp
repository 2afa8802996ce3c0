#include <algorithm>

#include "cerebellum/quantize/lane_vector.h"

namespace cerebellum::lanes {

int lane_count() {
    return width;
}

void row_mean_squares(const float* rows, std::int64_t n_rows, std::int64_t row_length, float* means) {
    // A sum has to wait for the one before; several rows at a time do not wait for each other.
    constexpr int at_once = 8;
    for (std::int64_t row = 0; row < n_rows; row += at_once) {
        const int count = static_cast<int>(std::min<std::int64_t>(at_once, n_rows - row));
        const float* from[at_once];
        for (int k = 0; k < at_once; ++k) from[k] = rows + (row + std::min(k, count - 1)) * row_length;
        float sums[at_once] = {};
        for (std::int64_t i = 0; i < row_length; ++i)
            for (int k = 0; k < at_once; ++k) sums[k] += from[k][i] * from[k][i];
        for (int k = 0; k < count; ++k) means[row + k] = sums[k] / static_cast<float>(row_length);
    }
}

bool all_finite(const float* numbers, std::int64_t count) {
    constexpr std::uint32_t exponent = 0x7f800000;
    std::uint32_t bad = 0;
    for (std::int64_t i = 0; i < count; ++i)
        bad |= (std::bit_cast<std::uint32_t>(numbers[i]) & exponent) == exponent ? 1U : 0U;
    return bad == 0;
}

}  // namespace cerebellum::lanes
