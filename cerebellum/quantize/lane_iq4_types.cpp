// Types with sixteen levels at uneven distances: IQ4_NL, IQ4_XS.
#include <algorithm>

#include "cerebellum/quantize/lane_search.h"

namespace cerebellum::lanes {

namespace {

constexpr int group = 32;
constexpr float values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/// Where one value becomes nearer than the one before. ggml compares the two distances; these differ in size whenever
/// the number is not the middle itself, so that comparing with the middle decides the same.
constexpr float middle(int i) {
    return (values[i - 1] + values[i]) / 2;
}

/// Eight places in memory, for one instruction that looks up all lanes.
struct alignas(32) Table {
    float entries[16];
};
/// The values from the last to the first, and the middles that a search for the nearest compares with, by what it has
/// found so far: see Nearest.
constexpr Table tables_of(int distance) {
    Table table{};
    for (int i = 0; i < 16 / distance; ++i)
        table.entries[i] = distance == 1 ? values[15 - i] : middle(16 - distance / 2 - distance * i);
    return table;
}
constexpr Table from_last = tables_of(1), middles_of_2 = tables_of(2), middles_of_4 = tables_of(4),
                middles_of_8 = tables_of(8);

#if defined(__AVX512F__)
NativeFloats one_of_eight(const float* table, NativeInts index) {
    const auto both = _mm512_maskz_broadcast_f64x4(0xff, _mm256_castps_pd(_mm256_load_ps(table)));
    return _mm512_maskz_permutexvar_ps(all_lanes, std::bit_cast<__m512i>(index), _mm512_castpd_ps(both));
}
#elif defined(__AVX2__)
NativeFloats one_of_eight(const float* table, NativeInts index) {
    return _mm256_permutevar8x32_ps(_mm256_load_ps(table), std::bit_cast<__m256i>(index));
}
#endif

/// The table's entry for each lane; `bits` are the index's, the highest first.
template <int count>
Floats look_up(const float* table, [[maybe_unused]] const Ints& index, const Ints* bits) {
    if constexpr (count == 1) return fill(table[0]);
#if defined(__AVX512F__) || defined(__AVX2__)
    if constexpr (count == 4 || count == 8)
        return each<Floats>([table](auto which) { return one_of_eight(table, which); }, index);
#endif
    if constexpr (count > 1)
        return select(bits[0], look_up<count / 2>(table + count / 2, index, bits + 1),
                      look_up<count / 2>(table, index, bits + 1));
}

/// best_index_int8: the nearest of the values, counted from the last. A number that is none is nearest to the last.
struct Nearest {
    Ints bits[4];
    Ints from_end;

    explicit Nearest(const Floats& x) {
        bits[0] = x < middle(8);
        from_end = fill(0) - bits[0];
        bits[1] = x < look_up<2>(middles_of_8.entries, from_end, bits);
        from_end = from_end + from_end - bits[1];
        bits[2] = x < look_up<4>(middles_of_4.entries, from_end, bits);
        from_end = from_end + from_end - bits[2];
        bits[3] = x < look_up<8>(middles_of_2.entries, from_end, bits);
        from_end = from_end + from_end - bits[3];
    }
    Ints index() const { return 15 - from_end; }
    Floats value() const { return look_up<16>(from_last.entries, from_end, bits); }
};

/// The scale of a group of 32 with weights `w`; 0 for a group of zeros.
Floats fit_values(const Floats* x, const Floats* w) {
    Floats extreme, magnitude;
    find_extreme<group>(x, extreme, magnitude);
    Floats sum_qx, sum_q2;
    const auto sum = [&](const Floats& inverse) {
        sum_qx = sum_q2 = fill(0.0f);
        for (int i = 0; i < group; ++i) {
            const Floats value = Nearest(inverse * x[i]).value();
            const Floats wq = w[i] * value;
            sum_qx += wq * x[i];
            sum_q2 += wq * value;
        }
    };
    sum(1.0f / (-extreme / values[0]));
    Floats scale = select(sum_q2 > 0.0f, sum_qx / sum_q2, fill(0.0f));
    Floats best = scale * sum_qx;
    for (int step = -7; step <= 7; ++step) {
        sum((static_cast<float>(step) + values[0]) / extreme);
        const Ints better = (sum_q2 > 0.0f) & (sum_qx * sum_qx > best * sum_q2);
        const Floats candidate = sum_qx / sum_q2;
        scale = select(better, candidate, scale);
        best = select(better, candidate * sum_qx, best);
    }
    return select(magnitude < smallest_group, fill(0.0f), scale);
}

/// Weights of a group and what they weigh; `spread` counts only with importance.
void load_group(const Batch& batch, int first, const Floats* x, const Floats& spread, Floats* w) {
    if (!batch.has_importance()) {
        for (int i = 0; i < group; ++i) w[i] = x[i] * x[i];
        return;
    }
    batch.load_importance(first, group, w);
    for (int i = 0; i < group; ++i) w[i] = w[i] * square_root(spread + x[i] * x[i]);
}

template <int n>
Floats spread_of(const Floats* x) {
    Floats sum = {};
    for (int i = 0; i < n; ++i) sum += x[i] * x[i];
    return sum * (2.0f / static_cast<float>(n));
}

void find_levels(const Floats* x, const Floats& inverse, Ints* levels) {
    for (int i = 0; i < group; ++i) levels[i] = Nearest(inverse * x[i]).index();
}

Floats inverse_or_zero(const Floats& x) {
    return select(x == 0.0f, fill(0.0f), 1.0f / x);
}

}  // namespace

std::uint32_t make_iq4_nl(std::span<const BlockJob> jobs) {
    const Batch batch(jobs);
    Floats x[group], w[group];
    batch.load_weights(0, group, x);
    load_group(batch, 0, x, spread_of<group>(x), w);
    const Floats scale = fit_values(x, w);
    batch.store_halves(0, scale);
    Ints levels[group];
    find_levels(x, inverse_or_zero(scale), levels);
    batch.store_bytes(2, 16, [&](int i) { return levels[i] | levels[i + 16] << 4; });
    return 0;
}

std::uint32_t make_iq4_xs(std::span<const BlockJob> jobs) {
    constexpr int super_block = 256;
    constexpr int n_groups = super_block / group;
    const Batch batch(jobs);
    Floats x[super_block], scales[n_groups];
    batch.load_weights(0, super_block, x);
    const Floats spread = spread_of<super_block>(x);
    for (int j = 0; j < n_groups; ++j) {
        Floats w[group];
        load_group(batch, group * j, x + group * j, spread, w);
        scales[j] = fit_values(x + group * j, w);
    }
    Floats extreme, magnitude;
    find_extreme<n_groups>(scales, extreme, magnitude);
    const Floats unit = -extreme / 32.0f;
    batch.store_halves(0, unit);
    const Floats inverse = inverse_or_zero(unit);
    Ints scale_levels[n_groups], high = {};
    for (int j = 0; j < n_groups; ++j) {
        const Ints level = smaller(larger(nearest_int(inverse * scales[j]), fill(-32)), fill(31));
        Ints levels[group];
        find_levels(x + group * j, inverse_or_zero(unit * to_floats(level)), levels);
        batch.store_bytes(8 + 16 * j, 16, [&](int i) { return levels[i] | levels[i + 16] << 4; });
        scale_levels[j] = level + 32;
        high |= scale_levels[j] >> 4 << (2 * j);
    }
    batch.store_word(2, high, 2);
    batch.store_bytes(4, 4, [&](int i) { return (scale_levels[2 * i] & 15) | (scale_levels[2 * i + 1] & 15) << 4; });
    return 0;
}

}  // namespace cerebellum::lanes
