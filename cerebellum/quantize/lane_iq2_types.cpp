// Types that round eight weights at a time to points of three levels: IQ2_XXS, IQ2_XS, IQ2_S.
#include "cerebellum/quantize/lane_codebook_search.h"

namespace cerebellum::lanes {

namespace {

constexpr float top_value = 5.0f;

/// IQ2_XS and IQ2_S: groups of 16, of two points each. Sets `signs` of both.
template <bool even_signs>
void fit_group_of_16(CodebookBlock<16>& block, const Codebook& book, int j, const Floats& spread, float least,
                     Ints* indices, Ints* signs) {
    constexpr int n = 16;
    Floats w[n], magnitudes[n];
    block.load_importance(j, spread, w);
    for (int k = 0; k < 2; ++k)
        split_signs<even_signs>(block.x + n * j + 8 * k, w + 8 * k, magnitudes + 8 * k, signs[k]);
    const Floats largest = largest_of<n>(magnitudes);
    const Ints live = block.batch.is_own() & ~(largest < least);
    GroupSearch<n, 8> search(book, magnitudes, w, live);
    search.start(largest / top_value, fill(-1));
    for (int step = -9; step <= 9; ++step) search.try_inverse((top_value + static_cast<float>(step) * 0.1f) / largest);
    search.settle(~search.all_on_book(), true);
    const Ints negative = search.scale() < 0.0f;
    block.set_scale(j, select(negative, -search.scale(), search.scale()), live);
    block.odd |= search.failed();
    for (int k = 0; k < 2; ++k) {
        indices[k] = search.index(k);
        signs[k] = select(live, select(negative, ~signs[k], signs[k]) & (even_signs ? 127 : 255), fill(0));
    }
}

/// IQ2_XXS: groups of 32, of four points each, whose search starts with the best scale for any levels.
void fit_group_of_32(CodebookBlock<32>& block, const Codebook& book, int j, const Floats& spread, Ints& indices,
                     Ints& signs) {
    constexpr int n = 32;
    Floats w[n], magnitudes[n];
    Ints part_signs[4], levels[n];
    block.load_importance(j, spread, w);
    for (int k = 0; k < 4; ++k)
        split_signs<true>(block.x + n * j + 8 * k, w + 8 * k, magnitudes + 8 * k, part_signs[k]);
    const Floats scale = fit_positive<n>(magnitudes, w, 4, levels);
    const Floats largest = scale * 3.0f;
    const Ints live = block.batch.is_own() & ~(largest_of<n>(magnitudes) < smallest_group) & ~(largest <= 0.0f);
    GroupSearch<n, 8> search(book, magnitudes, w, live);
    search.start(scale, fill(-1));
    for (int step = -6; step <= 6; ++step) search.try_inverse((top_value + static_cast<float>(step) * 0.1f) / largest);
    search.settle(live, false);
    const Ints negative = search.scale() < 0.0f;
    block.set_scale(j, select(negative, -search.scale(), search.scale()), live);
    block.odd |= search.failed();
    indices = signs = fill(0);
    for (int k = 0; k < 4; ++k) {
        indices |= search.index(k) << (8 * k);
        signs |= (select(negative, ~part_signs[k], part_signs[k]) & 127) << (7 * k);
    }
    signs = select(live, signs, fill(0));
}

}  // namespace

std::uint32_t make_iq2_xxs(std::span<const BlockJob> jobs) {
    static const Codebook book(GGML_TYPE_IQ2_XXS, neighbours_at_once);
    CodebookBlock<32> block(jobs);
    const Floats spread = block.sum_of_squares / 256.0f;
    Ints signs[8];
    for (int j = 0; j < 8; ++j) {
        Ints indices;
        fit_group_of_32(block, book, j, spread, indices, signs[j]);
        block.batch.store_word(2 + 8 * j, indices, 4);
    }
    block.store_scale(1.0f);
    for (int j = 0; j < 8; ++j) block.batch.store_word(6 + 8 * j, signs[j] | block.level(j) << 28, 4);
    return lane_bits(block.odd);
}

std::uint32_t make_iq2_xs(std::span<const BlockJob> jobs) {
    static const Codebook book(GGML_TYPE_IQ2_XS, neighbours_at_once);
    CodebookBlock<16> block(jobs);
    const Floats spread = block.sum_of_squares / 256.0f;
    for (int j = 0; j < 16; ++j) {
        Ints indices[2], signs[2];
        fit_group_of_16<true>(block, book, j, spread, smallest_group, indices, signs);
        block.batch.store_word(2 + 4 * j, indices[0] | signs[0] << 9 | indices[1] << 16 | signs[1] << 25, 4);
    }
    block.store_scale(1.0f);
    block.batch.store_bytes(66, 8, [&](int i) { return block.level(2 * i) | block.level(2 * i + 1) << 4; });
    return lane_bits(block.odd);
}

std::uint32_t make_iq2_s(std::span<const BlockJob> jobs) {
    static const Codebook book(GGML_TYPE_IQ2_S, neighbours_at_once);
    CodebookBlock<16> block(jobs);
    const Floats spread = 2.0f * block.sum_of_squares / 256.0f;
    Ints high[8];
    for (int j = 0; j < 16; ++j) {
        Ints indices[2], signs[2];
        fit_group_of_16<false>(block, book, j, spread, 1e-8f, indices, signs);
        block.batch.store_word(2 + 2 * j, (indices[0] & 255) | (indices[1] & 255) << 8, 2);
        block.batch.store_word(34 + 2 * j, signs[0] | signs[1] << 8, 2);
        const Ints two = (indices[0] >> 8) | (indices[1] >> 8) << 2;
        high[j / 2] = j % 2 == 0 ? two : high[j / 2] | two << 4;
    }
    block.batch.store_bytes(66, 8, [&](int i) { return high[i]; });
    block.store_scale(0.9875f);
    block.batch.store_bytes(74, 8, [&](int i) { return block.level(2 * i) | block.level(2 * i + 1) << 4; });
    return lane_bits(block.odd);
}

}  // namespace cerebellum::lanes
