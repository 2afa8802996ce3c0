// Types whose blocks store a scale and an offset: Q2_K, Q4_K, Q5_K, Q4_1, Q5_1.
#include <algorithm>

#include "cerebellum/quantize/lane_search.h"

namespace cerebellum::lanes {

namespace {

constexpr int super_block = 256;
constexpr Steps steps_with_importance = {-0.9f, 0.05f, 36};

Floats sum_of_squares(const Floats* x, int n) {
    Floats sum = {};
    for (int i = 0; i < n; ++i) sum += x[i] * x[i];
    return sum;
}

/// What Q2_K, Q4_K and Q5_K have in common: groups of weights with a scale and an offset each, which are themselves
/// stored as levels of a scale of the super-block.
template <int group>
struct SuperBlocks {
    static constexpr int n_groups = super_block / group;

    Floats x[super_block];
    RangeFit fits[n_groups];
    Floats scales[n_groups], offsets[n_groups], total_weight[n_groups];
    Ints scale_levels[n_groups], offset_levels[n_groups];
    Floats scale_unit, offset_unit;
    Ints levels[super_block];
    Ints odd = {};

    /// With importance: quantize_row_*_impl. `spread` is what ggml adds to the squares of the weights.
    void search_important(const Batch& batch, float top, const Floats& spread) {
        for (int j = 0; j < n_groups; ++j) {
            const Floats* here = x + group * j;
            Floats w[group];
            batch.load_importance(group * j, group, w);
            for (int i = 0; i < group; ++i) w[i] = w[i] * square_root(spread + here[i] * here[i]);
            Floats sum = {};
            for (int i = 0; i < group; ++i) sum += w[i];
            total_weight[j] = sum;
            keep(j, fit_range<group, false>(here, w, top, steps_with_importance, odd));
        }
    }
    void keep(int j, const RangeFit& fit) {
        fits[j] = fit;
        scales[j] = fit.scale;
        offsets[j] = fit.offset;
    }
    void round_scales_by_importance(int top) {
        scale_unit = fit_positive<n_groups>(scales, total_weight, top, scale_levels);
        offset_unit = fit_positive<n_groups>(offsets, total_weight, top, offset_levels);
    }
    /// Without importance the largest scale and the largest offset get the highest level.
    void round_scales_to_largest(float top) {
        scale_unit = round_to_largest(scales, scale_levels, top);
        offset_unit = round_to_largest(offsets, offset_levels, top);
    }
    static Floats round_to_largest(const Floats* x, Ints* levels, float top) {
        Floats most = {};
        for (int j = 0; j < n_groups; ++j) most = select(x[j] > most, x[j], most);
        const Floats inverse = select(most > 0.0f, top / most, fill(0.0f));
        for (int j = 0; j < n_groups; ++j) levels[j] = nearest_int(inverse * x[j]) & 255;
        return most / top;
    }
    /// The levels of group j by its scale and offset as they are stored.
    void round_group(int j, const Floats& scale, const Floats& offset, float top) {
        const Ints none = scale == 0.0f;
        const bool keeps_levels = any(none);
        for (int i = group * j; i < group * (j + 1); ++i) {
            const Ints level =
                smaller(larger(nearest_int((x[i] + offset) / scale), fill(0)), fill(static_cast<std::int32_t>(top)));
            levels[i] = keeps_levels ? select(none, fits[j].level(x[i], top), level) : level;
        }
    }
};

/// The 12 bytes of eight scales and eight offsets of 6 bits in Q4_K and Q5_K.
struct PackedScales {
    Ints bytes[12];

    PackedScales(const Ints* scales, const Ints* offsets) {
        for (int j = 0; j < 4; ++j) {
            bytes[j] = (scales[j] | (scales[j + 4] >> 4) << 6) & 255;
            bytes[j + 4] = (offsets[j] | (offsets[j + 4] >> 4) << 6) & 255;
            bytes[j + 8] = (scales[j + 4] & 15) | (offsets[j + 4] & 15) << 4;
        }
    }
    Ints scale(int j) const { return j < 4 ? bytes[j] & 63 : (bytes[j + 4] & 15) | (bytes[j - 4] >> 6) << 4; }
    Ints offset(int j) const { return j < 4 ? bytes[j + 4] & 63 : bytes[j + 4] >> 4 | (bytes[j] >> 6) << 4; }
};

using Groups32 = SuperBlocks<32>;

/// Q4_K and Q5_K up to the levels: half scale, half offset, 12 bytes; what follows is the type's own.
void make_groups_of_32(const Batch& batch, Groups32& blocks, float top, Steps plain_steps) {
    batch.load_weights(0, super_block, blocks.x);
    if (batch.has_importance()) {
        const Floats spread = 2.0f * sum_of_squares(blocks.x, super_block) / static_cast<float>(super_block);
        blocks.search_important(batch, top, spread);
        blocks.round_scales_by_importance(63);
    } else {
        for (int j = 0; j < Groups32::n_groups; ++j) {
            const Floats* here = blocks.x + 32 * j;
            const Floats average = square_root(sum_of_squares(here, 32) / 32.0f);
            Floats w[32];
            for (int i = 0; i < 32; ++i) w[i] = average + absolute(here[i]);
            blocks.keep(j, fit_range<32, false>(here, w, top, plain_steps, blocks.odd));
        }
        blocks.round_scales_to_largest(63.0f);
    }
    if (!batch.has_importance() || top > 15.0f)
        for (int j = 0; j < Groups32::n_groups; ++j) {
            blocks.scale_levels[j] = smaller(blocks.scale_levels[j], fill(63));
            blocks.offset_levels[j] = smaller(blocks.offset_levels[j], fill(63));
        }
    const Floats scale = batch.store_halves(0, blocks.scale_unit);
    const Floats offset = batch.store_halves(2, blocks.offset_unit);
    const PackedScales packed(blocks.scale_levels, blocks.offset_levels);
    batch.store_bytes(4, 12, [&](int i) { return packed.bytes[i]; });
    for (int j = 0; j < Groups32::n_groups; ++j)
        blocks.round_group(j, scale * to_floats(packed.scale(j)), offset * to_floats(packed.offset(j)), top);
}

/// The lower four bits of the levels, at `offset`.
void store_nibbles(const Batch& batch, int offset, const Ints* levels) {
    for (int chunk = 0; chunk < 4; ++chunk)
        batch.store_bytes(offset + 32 * chunk, 32, [&](int i) {
            return (levels[64 * chunk + i] & 15) | (levels[64 * chunk + 32 + i] & 15) << 4;
        });
}

/// One scale and one offset of a block of 32: Q4_1 and Q5_1.
void make_block_of_32(const Batch& batch, float top, Ints* levels, Ints& odd) {
    Floats x[32], w[32];
    batch.load_weights(0, 32, x);
    batch.load_importance(0, 32, w);
    for (int i = 0; i < 32; ++i) w[i] = w[i] * square_root(batch.mean_square() + x[i] * x[i]);
    const auto fit = fit_range<32, false>(x, w, top, steps_with_importance, odd);
    batch.store_halves(0, fit.scale);
    batch.store_halves(2, -fit.offset);
    for (int i = 0; i < 32; ++i) levels[i] = fit.level(x[i], top);
}

}  // namespace

std::uint32_t make_q4_k(std::span<const BlockJob> jobs) {
    const Batch batch(jobs);
    Groups32 blocks;
    make_groups_of_32(batch, blocks, 15.0f, {-1.0f, 0.1f, 20});
    store_nibbles(batch, 16, blocks.levels);
    return lane_bits(blocks.odd);
}

std::uint32_t make_q5_k(std::span<const BlockJob> jobs) {
    const Batch batch(jobs);
    Groups32 blocks;
    make_groups_of_32(batch, blocks, 31.0f, {-0.5f, 0.1f, 15});
    batch.store_bytes(16, 32, [&](int i) {
        Ints high = {};
        for (int j = 0; j < Groups32::n_groups; ++j) high |= blocks.levels[32 * j + i] >> 4 << j;
        return high;
    });
    store_nibbles(batch, 48, blocks.levels);
    return lane_bits(blocks.odd);
}

std::uint32_t make_q2_k(std::span<const BlockJob> jobs) {
    constexpr float top = 3.0f;
    using Groups16 = SuperBlocks<16>;
    const Batch batch(jobs);
    Groups16 blocks;
    batch.load_weights(0, super_block, blocks.x);
    if (batch.has_importance()) {
        blocks.search_important(batch, top, sum_of_squares(blocks.x, super_block) / static_cast<float>(super_block));
        blocks.round_scales_by_importance(15);
    } else {
        for (int j = 0; j < Groups16::n_groups; ++j) {
            const Floats* here = blocks.x + 16 * j;
            Floats w[16];
            for (int i = 0; i < 16; ++i) w[i] = absolute(here[i]);
            blocks.keep(j, fit_range<16, true>(here, w, top, {-0.5f, 0.1f, 15}, blocks.odd));
        }
        blocks.round_scales_to_largest(15.0f);
    }
    const Floats scale = batch.store_halves(80, blocks.scale_unit);
    const Floats offset = batch.store_halves(82, blocks.offset_unit);
    const auto packed = [&](int j) { return (blocks.scale_levels[j] | blocks.offset_levels[j] << 4) & 255; };
    batch.store_bytes(0, 16, packed);
    for (int j = 0; j < Groups16::n_groups; ++j)
        blocks.round_group(j, scale * to_floats(packed(j) & 15), offset * to_floats(packed(j) >> 4), top);
    const Ints* levels = blocks.levels;
    for (int half = 0; half < 2; ++half)
        batch.store_bytes(16 + 32 * half, 32, [&](int i) {
            const Ints* here = levels + 128 * half + i;
            return here[0] | here[32] << 2 | here[64] << 4 | here[96] << 6;
        });
    return lane_bits(blocks.odd);
}

std::uint32_t make_q4_1(std::span<const BlockJob> jobs) {
    const Batch batch(jobs);
    Ints levels[32], odd = {};
    make_block_of_32(batch, 15.0f, levels, odd);
    batch.store_bytes(4, 16, [&](int i) { return levels[i] | levels[i + 16] << 4; });
    return lane_bits(odd);
}

std::uint32_t make_q5_1(std::span<const BlockJob> jobs) {
    const Batch batch(jobs);
    Ints levels[32], odd = {};
    make_block_of_32(batch, 31.0f, levels, odd);
    Ints high = {};
    for (int i = 0; i < 32; ++i) high |= levels[i] >> 4 << i;
    batch.store_word(4, high, 4);
    batch.store_bytes(8, 16, [&](int i) { return (levels[i] & 15) | (levels[i + 16] & 15) << 4; });
    return lane_bits(odd);
}

}  // namespace cerebellum::lanes
