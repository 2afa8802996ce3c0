// Types whose levels lie around zero: Q3_K, Q6_K, Q4_0, Q5_0.
#include <algorithm>

#include "cerebellum/quantize/lane_search.h"

namespace cerebellum::lanes {

namespace {

constexpr int super_block = 256;
constexpr int group = 16;
constexpr int n_groups = super_block / group;

/// The number in the low byte with its sign.
Ints as_signed_byte(const Ints& x) {
    return x << 24 >> 24;
}

/// make_q3_quants: levels −4 … 3 of 16 weights that weigh as their squares; then one level at a time is changed as long
/// as that helps. Stored 0 … 7; of a group of zeros, 0.
Floats fit_q3(const Floats* x, Ints* levels) {
    Floats extreme, magnitude;
    find_extreme<group>(x, extreme, magnitude);
    const Ints zero = magnitude < smallest_group;
    const Floats inverse = -4.0f / extreme;
    Floats level[group], w[group], wx[group];
    Floats sum_xl = {}, sum_l2 = {};
    for (int i = 0; i < group; ++i) {
        w[i] = x[i] * x[i];
        wx[i] = w[i] * x[i];
        level[i] = smaller(larger(nearest_whole(inverse * x[i]), fill(-4.0f)), fill(3.0f));
        sum_xl += wx[i] * level[i];
        sum_l2 += w[i] * level[i] * level[i];
    }
    for (int pass = 0; pass < 5; ++pass) {
        Ints changed = {};
        for (int i = 0; i < group; ++i) {
            Floats xl = sum_xl - wx[i] * level[i];
            Floats l2 = sum_l2 - w[i] * level[i] * level[i];
            const Ints found = smaller(larger(nearest_int(x[i] * l2 / xl), fill(-4)), fill(3));
            const Floats candidate = to_floats(found);
            Ints better = (xl > 0.0f) & (candidate != level[i]);
            xl += wx[i] * candidate;
            l2 += w[i] * candidate * candidate;
            better &= (l2 > 0.0f) & (xl * xl * sum_l2 > sum_xl * sum_xl * l2);
            level[i] = select(better, candidate, level[i]);
            sum_xl = select(better, xl, sum_xl);
            sum_l2 = select(better, l2, sum_l2);
            changed |= better;
        }
        if (!any(changed & ~zero)) break;
    }
    for (int i = 0; i < group; ++i) levels[i] = select(zero, fill(0), to_ints(level[i] + 4.0f));
    return select(zero | ~(sum_l2 > 0.0f), fill(0.0f), sum_xl / sum_l2);
}

/// Levels of group j by its scale as it is stored; where that is 0, those that the search found remain.
template <typename Found>
void round_group(const Floats* x, const Floats& scale, int half, Ints* levels, const Found& found) {
    const Ints none = scale == 0.0f;
    const bool keeps_levels = any(none);
    for (int i = 0; i < group; ++i) {
        const Ints level = smaller(larger(nearest_int(x[i] / scale), fill(-half)), fill(half - 1)) + half;
        levels[i] = keeps_levels ? select(none, found(i), level) : level;
    }
}

struct Q3Blocks {
    Floats x[super_block];
    Floats scales[n_groups];
    Ints scale_levels[n_groups];  // 0 … 63
    Floats scale_unit;
    Ints levels[super_block];
    Ints odd = {};

    void search_important(const Batch& batch) {
        Floats sum = {};
        for (const Floats& weight : x) sum += weight * weight;
        const Floats spread = 2.0f * sum / static_cast<float>(super_block);
        Floats total_weight[n_groups];
        for (int j = 0; j < n_groups; ++j) {
            const Floats* here = x + group * j;
            Floats w[group];
            batch.load_importance(group * j, group, w);
            for (int i = 0; i < group; ++i) w[i] = w[i] * square_root(spread + here[i] * here[i]);
            total_weight[j] = fill(0.0f);
            for (const Floats& weight : w) total_weight[j] += weight;
            const auto fit = fit_symmetric<group>(here, w, 4.0f);
            scales[j] = fit.scale;
            odd |= ~is_ordinary(fit.scale);
            for (int i = 0; i < group; ++i) levels[group * j + i] = fit.level(here[i], 4.0f);
        }
        const auto fit = fit_symmetric<n_groups>(scales, total_weight, 32.0f);
        for (int j = 0; j < n_groups; ++j) scale_levels[j] = fit.level(scales[j], 32.0f);
        scale_unit = fit.scale;
    }
    /// quantize_row_q3_K_ref
    void search_plain() {
        for (int j = 0; j < n_groups; ++j) {
            scales[j] = fit_q3(x + group * j, levels + group * j);
            odd |= ~is_ordinary(scales[j]);
        }
        Floats extreme, magnitude;
        find_extreme<n_groups>(scales, extreme, magnitude);
        const Ints none = extreme == 0.0f;
        const Floats inverse = -32.0f / extreme;
        for (int j = 0; j < n_groups; ++j) {
            const Ints found = as_signed_byte(nearest_int(inverse * scales[j]));
            scale_levels[j] = select(none, fill(0), smaller(larger(found, fill(-32)), fill(31)) + 32);
        }
        scale_unit = select(none, fill(0.0f), 1.0f / inverse);
    }
};

/// Q4_0 and Q5_0 up to the levels.
void make_block_of_32(const Batch& batch, float half, Ints* levels) {
    Floats x[32], w[32];
    batch.load_weights(0, 32, x);
    batch.load_importance(0, 32, w);
    for (int i = 0; i < 32; ++i) w[i] = w[i] * square_root(batch.mean_square() + x[i] * x[i]);
    const auto fit = fit_symmetric<32>(x, w, half);
    batch.store_halves(0, fit.scale);
    for (int i = 0; i < 32; ++i) levels[i] = fit.level(x[i], half);
}

}  // namespace

std::uint32_t make_q3_k(std::span<const BlockJob> jobs) {
    const Batch batch(jobs);
    Q3Blocks blocks;
    batch.load_weights(0, super_block, blocks.x);
    if (batch.has_importance())
        blocks.search_important(batch);
    else
        blocks.search_plain();
    const Ints* scale_levels = blocks.scale_levels;
    batch.store_bytes(96, 8, [&](int i) { return (scale_levels[i] & 15) | (scale_levels[i + 8] & 15) << 4; });
    batch.store_bytes(104, 4, [&](int i) {
        return scale_levels[i] >> 4 | scale_levels[i + 4] >> 4 << 2 | scale_levels[i + 8] >> 4 << 4 |
               scale_levels[i + 12] >> 4 << 6;
    });
    const Floats unit = batch.store_halves(108, blocks.scale_unit);
    for (int j = 0; j < n_groups; ++j) {
        Ints* levels = blocks.levels + group * j;
        round_group(blocks.x + group * j, unit * to_floats(scale_levels[j] - 32), 4, levels,
                    [&](int i) { return levels[i]; });
    }
    const Ints* levels = blocks.levels;
    batch.store_bytes(0, 32, [&](int i) {
        Ints high = {};
        for (int j = 0; j < 8; ++j) high |= levels[32 * j + i] >> 2 << j;
        return high;
    });
    for (int half = 0; half < 2; ++half)
        batch.store_bytes(32 + 32 * half, 32, [&](int i) {
            const Ints* here = levels + 128 * half + i;
            return (here[0] & 3) | (here[32] & 3) << 2 | (here[64] & 3) << 4 | (here[96] & 3) << 6;
        });
    return lane_bits(blocks.odd);
}

std::uint32_t make_q6_k(std::span<const BlockJob> jobs) {
    const Batch batch(jobs);
    Floats x[super_block], scales[n_groups];
    SymmetricFit fits[n_groups];
    Ints odd = {}, levels[super_block], scale_levels[n_groups];
    batch.load_weights(0, super_block, x);
    for (int j = 0; j < n_groups; ++j) {
        const Floats* here = x + group * j;
        Floats w[group];
        if (batch.has_importance())
            batch.load_importance(group * j, group, w);
        else
            for (int i = 0; i < group; ++i) w[i] = here[i] * here[i];
        fits[j] = fit_symmetric<group>(here, w, 32.0f);
        scales[j] = fits[j].scale;
        odd |= ~is_ordinary(scales[j]);
    }
    Floats extreme, magnitude;
    find_extreme<n_groups>(scales, extreme, magnitude);
    const Ints zero = magnitude < smallest_group;
    const Floats inverse = -128.0f / extreme;
    const Floats unit = batch.store_halves(208, select(zero, fill(0.0f), 1.0f / inverse));
    for (int j = 0; j < n_groups; ++j) {
        const Ints found = as_signed_byte(smaller(nearest_int(inverse * scales[j]), fill(127)));
        scale_levels[j] = select(zero, fill(0), found);
        round_group(x + group * j, unit * to_floats(found), 32, levels + group * j,
                    [&](int i) { return fits[j].level(x[group * j + i], 32.0f); });
    }
    for (Ints& level : levels) level = select(zero, fill(0), level);
    for (int half = 0; half < 2; ++half) {
        const Ints* from = levels + 128 * half;
        batch.store_bytes(64 * half, 64, [&](int i) { return (from[i] & 15) | (from[i + 64] & 15) << 4; });
        batch.store_bytes(128 + 32 * half, 32, [&](int i) {
            return from[i] >> 4 | from[i + 32] >> 4 << 2 | from[i + 64] >> 4 << 4 | from[i + 96] >> 4 << 6;
        });
    }
    batch.store_bytes(192, 16, [&](int j) { return scale_levels[j] & 255; });
    return lane_bits(odd);
}

std::uint32_t make_q4_0(std::span<const BlockJob> jobs) {
    const Batch batch(jobs);
    Ints levels[32];
    make_block_of_32(batch, 8.0f, levels);
    batch.store_bytes(2, 16, [&](int i) { return levels[i] | levels[i + 16] << 4; });
    return 0;
}

std::uint32_t make_q5_0(std::span<const BlockJob> jobs) {
    const Batch batch(jobs);
    Ints levels[32];
    make_block_of_32(batch, 16.0f, levels);
    Ints high = {};
    for (int i = 0; i < 32; ++i) high |= levels[i] >> 4 << i;
    batch.store_word(2, high, 4);
    batch.store_bytes(6, 16, [&](int i) { return (levels[i] & 15) | (levels[i + 16] & 15) << 4; });
    return 0;
}

}  // namespace cerebellum::lanes
