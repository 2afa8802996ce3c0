// Types of three levels, moved up or down by an eighth, and points of eight weights: IQ1_S, IQ1_M.
#include "cerebellum/quantize/lane_codebook_search.h"

namespace cerebellum::lanes {

namespace {

constexpr int part = 8;
constexpr float shift = 0.125f;

/// Levels 0, 1, 2 as values around ±shift.
constexpr LevelValues values_around(float middle) {
    LevelValues values{};
    for (int i = 0; i < 16; ++i) values.of[i] = static_cast<float>(i % 4 - 1) + middle;
    return values;
}
constexpr LevelValues raised = values_around(shift), lowered = values_around(-shift);

Floats value_of(const Ints& level, const Ints& is_raised) {
    return to_floats(level - 1) + select(is_raised, fill(shift), fill(-shift));
}

/// A group of n weights ≈ scale·value, each part of 8 around a middle of its own.
template <int n>
struct TernaryGroup {
    static constexpr int n_parts = n / part;

    Floats x[n], w[n];
    Ints rank[n];  // among x, from the least; equal ones in their order
    Ints live;
    // The best found: weights of ranks below `first` have level 0, from `second` on level 2.
    Ints first = fill(-1), second = fill(-1);
    Floats best = fill(-FLT_MAX), scale;
    Ints is_raised[n_parts];
    Ints points[n_parts], failed = fill(0);

    void load(CodebookBlock<n>& block, int j, const Floats& spread, float least) {
        for (int i = 0; i < n; ++i) x[i] = block.x[n * j + i];
        block.load_importance(j, spread, w);
        Floats largest = absolute(x[0]);
        for (int i = 1; i < n; ++i) largest = larger(largest, absolute(x[i]));
        live = block.batch.is_own() & ~(largest < least);
        scale = largest;
        for (auto& raised_here : is_raised) raised_here = fill(0);
        for (int i = 0; i < n; ++i) rank[i] = fill(0);
        for (int i = 1; i < n; ++i)
            for (int before = 0; before < i; ++before) {
                const Ints less = x[i] < x[before];
                rank[before] = rank[before] - less;
                rank[i] = rank[i] + 1 + less;
            }
    }
    /// Sums of what weights from..from + count − 1 are given by `of`, in order of rank: sums[r] of those below rank r.
    void sum_in_order(const Floats* of, int from, int count, Floats* sums) const {
        alignas(64) float sorted[n][width] = {};
        for (int i = from; i < from + count; ++i) {
            std::int32_t ranks[width];
            float numbers[width];
            to_row(rank[i], ranks);
            to_row(of[i], numbers);
            for (int lane = 0; lane < width; ++lane) sorted[ranks[lane]][lane] = numbers[lane];
        }
        sums[0] = fill(0.0f);
        for (int r = 0; r < n; ++r) {
            Floats next;
            from_row(sorted[r], next);
            sums[r + 1] = sums[r] + next;
        }
    }
    /// Whether these are better sums than the best so far. If they are in any lane, they are taken there.
    bool take_better(const Floats& sum_qx, const Floats& sum_q2, Ints& better) {
        better = (sum_q2 > 0.0f) & (sum_qx * sum_qx > best * sum_q2);
        if (!any(better)) return false;
        const Floats candidate = sum_qx / sum_q2;
        scale = select(better, candidate, scale);
        best = select(better, candidate * sum_qx, best);
        return true;
    }
    /// Levels of the best split on the book, and the scale that fits them.
    void snap(const Codebook& book) {
        live &= first != -1;
        const Ints negative = scale < 0.0f;
        scale = select(negative, -scale, scale);
        alignas(64) float x_rows[n][width], w_rows[n][width];
        for (int i = 0; i < n; ++i) {
            to_row(x[i], x_rows[i]);
            to_row(w[i], w_rows[i]);
        }
        Ints all_on_book = fill(-1);
        for (int k = 0; k < n_parts; ++k) {
            is_raised[k] = select(negative, ~is_raised[k], is_raised[k]);
            Ints key = fill(0);
            points[k] = fill(0);
            for (int i = part - 1; i >= 0; --i) {
                const Ints& here = rank[part * k + i];
                const Ints level = select(here < first, fill(0), select(here < second, fill(1), fill(2)));
                const Ints turned = select(negative, 2 - level, level);
                key = key + key + key + turned;
                points[k] = points[k] << 2 | turned;
            }
            std::int32_t raised_lanes[width];
            to_row(is_raised[k], raised_lanes);
            all_on_book &= snap_to_book<part>(
                book, key, live, x_rows + part * k, w_rows + part * k, scale,
                [&](int lane) -> const LevelValues& { return raised_lanes[lane] != 0 ? raised : lowered; }, points[k],
                failed);
        }
        fit_scale(~all_on_book);
    }
    void fit_scale(const Ints& where) {
        Floats sum_qx = fill(0.0f), sum_q2 = fill(0.0f);
        add_sums(fill(1.0f), sum_qx, sum_q2);
        scale = select(where & (sum_qx > 0.0f) & (sum_q2 > 0.0f), sum_qx / sum_q2, scale);
    }
    /// Adds the sums of the values times `factor`.
    void add_sums(const Floats& factor, Floats& sum_qx, Floats& sum_q2) const {
        for (int i = 0; i < n; ++i) {
            const Ints level = points[i / part] >> (2 * (i % part)) & 3;
            const Floats q = value_of(level, is_raised[i / part]) * factor;
            const Floats wq = w[i] * q;
            sum_qx += wq * x[i];
            sum_q2 += wq * q;
        }
    }
};

/// Tries all splits of the weights by rank, and both middles for each.
void split_32(TernaryGroup<32>& group) {
    constexpr int n = 32;
    constexpr float up[3] = {-1 + shift, shift, 1 + shift}, down[3] = {-1 - shift, -shift, 1 - shift};
    Floats wx[n], sum_x[n + 1], sum_w[n + 1];
    for (int i = 0; i < n; ++i) wx[i] = group.w[i] * group.x[i];
    group.sum_in_order(wx, 0, n, sum_x);
    group.sum_in_order(group.w, 0, n, sum_w);
    Floats x_up[n + 1], w_up[n + 1], x_down[n + 1], w_down[n + 1];  // above the second cut
    for (int cut = 0; cut <= n; ++cut) {
        const Floats x_above = sum_x[n] - sum_x[cut], w_above = sum_w[n] - sum_w[cut];
        x_up[cut] = x_above * up[2];
        w_up[cut] = w_above * up[2] * up[2];
        x_down[cut] = x_above * down[2];
        w_down[cut] = w_above * down[2] * down[2];
    }
    for (int first = 0; first <= n; ++first)
        for (int second = first; second <= n; ++second) {
            const Floats between_x = (sum_x[second] - sum_x[first]) * shift;
            const Floats between_w = (sum_w[second] - sum_w[first]) * shift * shift;
            const auto take = [&](const Floats& sum_qx, const Floats& sum_q2, bool is_up) {
                Ints better;
                if (!group.take_better(sum_qx, sum_q2, better)) return;
                group.first = select(better, fill(first), group.first);
                group.second = select(better, fill(second), group.second);
                group.is_raised[0] = select(better, fill(is_up ? -1 : 0), group.is_raised[0]);
            };
            take(sum_x[first] * up[0] + between_x + x_up[second],
                 sum_w[first] * up[0] * up[0] + between_w + w_up[second], true);
            take(sum_x[first] * down[0] - between_x + x_down[second],
                 sum_w[first] * down[0] * down[0] + between_w + w_down[second], false);
        }
    for (auto& raised_here : group.is_raised) raised_here = group.is_raised[0];
}

/// The same with a middle for each half.
class SplitOf16 {
  public:
    explicit SplitOf16(TernaryGroup<16>& group) : group_(group) {
        Floats wx[n];
        for (int i = 0; i < n; ++i) wx[i] = group.w[i] * group.x[i];
        for (int h = 0; h < 2; ++h) {
            group.sum_in_order(wx, h * n / 2, n / 2, sum_x_[h]);
            group.sum_in_order(group.w, h * n / 2, n / 2, sum_w_[h]);
        }
    }
    void find_best() {
        for (int first = 0; first <= n; ++first)
            for (int second = first; second <= n; ++second) try_cuts(first, second);
    }

  private:
    static constexpr int n = 16;

    void try_cuts(int first, int second) {
        Floats qx[2][2], q2[2][2];  // half, lowered
        for (int h = 0; h < 2; ++h) {
            const Floats below = sum_x_[h][first] + sum_x_[h][second];
            for (int low = 0; low < 2; ++low) {
                const float* values = (low == 0 ? raised : lowered).of;
                const float squares[3] = {values[0] * values[0], values[1] * values[1], values[2] * values[2]};
                qx[h][low] = sum_x_[h][n] * values[2] - below;
                q2[h][low] = sum_w_[h][n] * values[2] * values[2] + sum_w_[h][first] * (squares[0] - squares[1]) +
                             sum_w_[h][second] * (squares[1] - squares[2]);
            }
        }
        for (int k = 0; k < 4; ++k) {
            Ints better;
            if (!group_.take_better(qx[0][k / 2] + qx[1][k % 2], q2[0][k / 2] + q2[1][k % 2], better)) continue;
            group_.first = select(better, fill(first), group_.first);
            group_.second = select(better, fill(second), group_.second);
            group_.is_raised[0] = select(better, fill(k / 2 == 0 ? -1 : 0), group_.is_raised[0]);
            group_.is_raised[1] = select(better, fill(k % 2 == 0 ? -1 : 0), group_.is_raised[1]);
        }
    }

    TernaryGroup<16>& group_;
    Floats sum_x_[2][n + 1], sum_w_[2][n + 1];
};

/// IQ1_M has the codebook of IQ1_S.
const Codebook& book_of_iq1() {
    static const Codebook book(GGML_TYPE_IQ1_S, neighbours_at_once);
    return book;
}

}  // namespace

std::uint32_t make_iq1_s(std::span<const BlockJob> jobs) {
    const auto& book = book_of_iq1();
    CodebookBlock<32> block(jobs);
    const Floats spread = 2.0f * block.sum_of_squares / 256.0f;
    Ints high[8];
    for (int j = 0; j < 8; ++j) {
        TernaryGroup<32> group;
        group.load(block, j, spread, 1e-12f);
        split_32(group);
        group.snap(book);
        block.set_scale(j, group.scale, group.live);
        block.odd |= group.failed;
        Ints indices[4];
        for (int k = 0; k < 4; ++k) indices[k] = select(group.live, index_of(book, group.points[k]), fill(0));
        block.batch.store_bytes(2 + 4 * j, 4, [&](int i) { return indices[i] & 255; });
        high[j] = group.live & ~group.is_raised[0] & 1 << 15;
        for (int k = 0; k < 4; ++k) high[j] |= indices[k] >> 8 << (3 * k);
    }
    block.batch.store_halves(0, block.find_unit(15.0f) * 1.125f);
    for (int j = 0; j < 8; ++j) block.batch.store_word(34 + 2 * j, high[j] | block.level(j, 7) << 12, 2);
    return lane_bits(block.odd);
}

std::uint32_t make_iq1_m(std::span<const BlockJob> jobs) {
    constexpr int n_groups = 16;
    const auto& book = book_of_iq1();
    CodebookBlock<16> block(jobs);
    const Floats spread = 2.0f * block.sum_of_squares / 256.0f;
    TernaryGroup<16> groups[n_groups];
    Ints indices[n_groups][2], high[n_groups];
    for (int j = 0; j < n_groups; ++j) {
        auto& group = groups[j];
        group.load(block, j, spread, 1e-7f);
        SplitOf16(group).find_best();
        group.snap(book);
        block.set_scale(j, group.scale, group.live);
        block.odd |= group.failed;
        for (int k = 0; k < 2; ++k) {
            // A group of zeros is the first point, raised.
            group.points[k] = select(group.live, group.points[k], fill(book.points[0]));
            group.is_raised[k] = group.is_raised[k] | ~group.live;
            indices[j][k] = index_of(book, group.points[k]);
        }
        high[j] =
            indices[j][0] >> 8 | indices[j][1] >> 8 << 4 | (~group.is_raised[0] & 8) | (~group.is_raised[1] & 128);
    }
    block.batch.store_bytes(0, 32, [&](int i) { return indices[i / 2][i % 2] & 255; });
    block.batch.store_bytes(32, 16, [&](int i) { return high[i]; });
    // The unit that fits best with the scales as they are stored.
    Floats unit = block.find_unit(15.0f), sum_qx = fill(0.0f), sum_q2 = fill(0.0f);
    Ints words[4] = {0, 0, 0, 0};
    for (int j = 0; j < n_groups; ++j) {
        const Ints level = block.level(j, 7);
        words[j / 4] |= level << (3 * (j % 4));
        groups[j].add_sums(to_floats(level + level + 1), sum_qx, sum_q2);
    }
    unit = select(sum_q2 > 0.0f, sum_qx / sum_q2, unit);
    unit = select(block.some_live, unit * 1.1125f, fill(0.0f));
    block.odd |= ~is_ordinary(unit);
    for (int lane = 0; lane < width; ++lane) {
        const auto half = ggml_fp32_to_fp16(unit[lane]);
        for (int i = 0; i < 4; ++i) words[i].set(lane, words[i][lane] | (half >> (4 * i) & 15) << 12);
    }
    for (int i = 0; i < 4; ++i) block.batch.store_word(48 + 2 * i, words[i], 2);
    return lane_bits(block.odd);
}

}  // namespace cerebellum::lanes
