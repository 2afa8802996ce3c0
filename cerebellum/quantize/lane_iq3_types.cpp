// Types that round four weights at a time to points of eight levels: IQ3_XXS, IQ3_S.
#include "cerebellum/quantize/lane_codebook_search.h"

namespace cerebellum::lanes {

namespace {

constexpr int group = 32;
constexpr int n_points = 8;
constexpr int n_signs = 4;  // bytes, or seven bits where the eighth follows from the others
constexpr float top_value = 15.0f;
constexpr float step_width = 0.2f;

struct Group {
    Ints live, indices[n_points], signs[n_signs];
};

template <bool even_signs>
Group fit_group(CodebookBlock<group>& block, const Codebook& book, int j, const Floats& spread) {
    constexpr int last_step = even_signs ? 15 : 9;
    Floats w[group], magnitudes[group];
    Group result;
    block.load_importance(j, spread, w);
    for (int k = 0; k < n_signs; ++k)
        split_signs<even_signs>(block.x + group * j + 8 * k, w + 8 * k, magnitudes + 8 * k, result.signs[k]);
    const Floats largest = largest_of<group>(magnitudes);
    const Ints live = result.live = block.batch.is_own() & (even_signs ? ~(largest < 1e-8f) : largest != 0.0f);
    GroupSearch<group, 4> search(book, magnitudes, w, live);
    search.start(largest / top_value, fill(even_signs ? -1 : 0));
    for (int step = -last_step; step <= last_step; ++step)
        search.try_inverse((top_value + static_cast<float>(step) * step_width) / largest);
    search.settle(~search.all_on_book(), even_signs);
    const Ints negative = search.scale() < 0.0f;
    block.set_scale(j, select(negative, -search.scale(), search.scale()), live);
    block.odd |= search.failed();
    for (int k = 0; k < n_points; ++k) result.indices[k] = search.index(k);
    for (auto& signs : result.signs)
        signs = select(live, select(negative, ~signs, signs) & (even_signs ? 127 : 255), fill(0));
    return result;
}

}  // namespace

std::uint32_t make_iq3_xxs(std::span<const BlockJob> jobs) {
    static const Codebook book(GGML_TYPE_IQ3_XXS, neighbours_at_once);
    CodebookBlock<group> block(jobs);
    const Floats spread = 2.0f * block.sum_of_squares / 256.0f;
    Ints all_signs[8];
    for (int j = 0; j < 8; ++j) {
        const auto [live, indices, signs] = fit_group<true>(block, book, j, spread);
        block.batch.store_bytes(2 + n_points * j, n_points, [&](int i) { return indices[i]; });
        all_signs[j] = signs[0] | signs[1] << 7 | signs[2] << 14 | signs[3] << 21;
    }
    block.store_scale(1.0125f);
    for (int j = 0; j < 8; ++j) block.batch.store_word(66 + 4 * j, all_signs[j] | block.level(j) << 28, 4);
    return lane_bits(block.odd);
}

std::uint32_t make_iq3_s(std::span<const BlockJob> jobs) {
    static const Codebook book(GGML_TYPE_IQ3_S, neighbours_at_once);
    CodebookBlock<group> block(jobs);
    const Floats spread = 2.0f * block.sum_of_squares / 256.0f;
    Ints high[8], zero_before = fill(0);
    for (int j = 0; j < 8; ++j) {
        const auto [live, indices, signs] = fit_group<false>(block, book, j, spread);
        block.batch.store_bytes(2 + n_points * j, n_points, [&](int i) { return indices[i] & 255; });
        block.batch.store_bytes(74 + n_signs * j, n_signs, [&](int i) { return signs[i]; });
        high[j] = fill(0);
        for (int k = 0; k < n_points; ++k) high[j] |= indices[k] >> 8 << k;
        // After a group of zeros ggml stores the next one in its place.
        block.odd |= zero_before & live;
        zero_before |= ~live;
    }
    block.batch.store_bytes(66, 8, [&](int i) { return high[i]; });
    block.store_scale(1.033f);
    block.batch.store_bytes(106, 4, [&](int i) { return block.level(2 * i) | block.level(2 * i + 1) << 4; });
    return lane_bits(block.odd);
}

}  // namespace cerebellum::lanes
