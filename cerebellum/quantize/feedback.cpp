#include "cerebellum/quantize/feedback.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cassert>
#include <cmath>
#include <vector>

#include "cerebellum/core/parallel.h"

namespace cerebellum {

namespace {

/// Rows that are rounded together, one in each lane: all arithmetic is lane by lane, so that no row sees another, and
/// neither the width of the processor's registers nor the number of threads changes a bit.
constexpr int n_lanes = 16;
using Lanes [[gnu::vector_size(n_lanes * sizeof(float))]] = float;

/// A row's new integers must be better by this much, more than the sums below can be off.
constexpr float least_gain = 1e-3f;

constexpr Lanes zero = {};

Lanes smaller(Lanes a, Lanes b) {
    return a < b ? a : b;
}
Lanes larger(Lanes a, Lanes b) {
    return a > b ? a : b;
}
Lanes fill(float value) {
    return zero + value;
}
/// To the nearest whole number, ties to even; for magnitudes below 2²².
Lanes nearest_whole(Lanes x) {
    constexpr float shift = 12582912.0f;  // 1.5·2²³: what is added to it loses its fraction
    return (x + shift) - shift;
}
/// a / b, and 0 where b is 0.
Lanes ratio(Lanes a, Lanes b) {
    return b == zero ? zero : a / (b == zero ? fill(1.0f) : b);
}
bool any(Lanes x) {
    for (int lane = 0; lane < n_lanes; ++lane)
        if (x[lane] != 0.0f) return true;
    return false;
}

/// sums[j] = Σ_{i in [begin, end)} matrix[j·stride + i] · x[i]
template <int count>
void multiply(const float* matrix, std::int64_t stride, const Lanes* x, std::int64_t begin, std::int64_t end,
              Lanes* sums) {
    std::array<Lanes, count> sum{};
    for (std::int64_t i = begin; i < end; ++i)
        for (int j = 0; j < count; ++j) sum[static_cast<std::size_t>(j)] += matrix[j * stride + i] * x[i];
    std::ranges::copy(sum, sums);
}

constexpr int at_once = 4;  // rows of a matrix that `multiply` takes through memory together

/// One batch of rows; made once per thread and used for many.
class RowBatch {
  public:
    RowBatch(const BlockCodec& codec, const InputMetric& metric)
        : codec_(codec),
          metric_(metric),
          n_(metric.n_cols()),
          n_blocks_(n_ / codec.block_size),
          weights_(static_cast<std::size_t>(n_)),
          levels_(weights_.size()),
          errors_(weights_.size()),
          by_position_(weights_.size()),
          gradient_(static_cast<std::size_t>(codec.block_size)),
          direction_(gradient_.size()),
          scales_(static_cast<std::size_t>(n_blocks_ * n_lanes)),
          floats_(weights_.size()),
          codes_(gradient_.size()) {}

    std::int64_t improve(const RowReader& read_row, std::int64_t begin, std::int64_t end, std::byte* rows, int sweeps) {
        const auto n_rows = static_cast<int>(end - begin);
        const auto row_bytes = ggml_row_size(codec_.type, n_);
        load(read_row, begin, n_rows, rows, row_bytes);
        const Lanes before = objective();
        round_in_order();
        for (int sweep = 0; sweep < sweeps; ++sweep)
            for (std::int64_t block = 0; block < n_blocks_; ++block) refine(block);
        const Lanes after = objective();
        std::int64_t changed = 0;
        for (int lane = 0; lane < n_rows; ++lane)
            if (after[lane] < before[lane] * (1.0f - least_gain)) {
                store(lane, rows + static_cast<std::size_t>(begin + lane) * row_bytes);
                ++changed;
            }
        return changed;
    }

  private:
    static std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }
    BlockScales& scales(std::int64_t block, int lane) { return scales_[at(block * n_lanes + lane)]; }
    std::uint8_t* block_of(std::byte* row, std::int64_t block) const {
        return reinterpret_cast<std::uint8_t*>(row) + at(block) * ggml_type_size(codec_.type);
    }

    void load(const RowReader& read_row, std::int64_t begin, int n_rows, std::byte* rows, std::size_t row_bytes) {
        for (int lane = 0; lane < n_lanes; ++lane) {
            // Lanes without a row of their own do the last one's work again.
            const auto row = begin + std::min(lane, n_rows - 1);
            read_row(row, floats_);
            for (std::int64_t i = 0; i < n_; ++i) weights_[at(i)][lane] = floats_[at(i)];
            for (std::int64_t block = 0; block < n_blocks_; ++block) {
                const auto* bytes = block_of(rows + at(row) * row_bytes, block);
                scales(block, lane) = codec_.read_scales(bytes);
                codec_.read_codes(bytes, codes_.data());
                for (int i = 0; i < codec_.block_size; ++i)
                    levels_[at(block * codec_.block_size + i)][lane] = codec_.levels[codes_[at(i)]];
            }
        }
        for (std::int64_t group = 0; group < n_ / codec_.group_size; ++group) set_errors(group);
    }

    void store(int lane, std::byte* row) {
        for (std::int64_t block = 0; block < n_blocks_; ++block) {
            for (int i = 0; i < codec_.block_size; ++i)
                codes_[at(i)] = code_of(levels_[at(block * codec_.block_size + i)][lane]);
            codec_.write_codes(block_of(row, block), codes_.data());
            codec_.write_scales(block_of(row, block), scales(block, lane));
        }
    }

    std::uint8_t code_of(float level) const {
        const auto& levels = codec_.levels;
        return static_cast<std::uint8_t>(std::ranges::lower_bound(levels, level) - levels.begin());
    }

    struct Group {
        Lanes scale, offset;
    };
    Group group(std::int64_t index) {
        const auto block = index * codec_.group_size / codec_.block_size;
        const auto in_block = static_cast<int>(index % codec_.n_groups());
        Group result{};
        for (int lane = 0; lane < n_lanes; ++lane) {
            result.scale[lane] = scales(block, lane).group_scale(in_block);
            result.offset[lane] = scales(block, lane).group_offset(in_block);
        }
        return result;
    }

    void set_errors(std::int64_t index) {
        const auto [scale, offset] = group(index);
        for (auto i = index * codec_.group_size; i < (index + 1) * codec_.group_size; ++i)
            errors_[at(i)] = scale * levels_[at(i)] + offset - weights_[at(i)];
    }

    /// The level whose weight is nearest.
    Lanes nearest_level(Lanes weight, const Group& group) const {
        const auto& levels = codec_.levels;
        const Lanes x =
            smaller(larger(ratio(weight - group.offset, group.scale), fill(levels.front())), fill(levels.back()));
        if (codec_.uniform) return nearest_whole(x);
        Lanes level = fill(levels.front());
        for (std::size_t k = 1; k < levels.size(); ++k)
            level = x > fill(0.5f * (levels[k - 1] + levels[k])) ? fill(levels[k]) : level;
        return level;
    }

    /// Σ over the rounded positions of what is left of them in this one's output, for `count` positions below `end`.
    template <int count>
    void carry(std::int64_t end, Lanes* sums) const {
        multiply<count>(metric_.feedback(end - count), n_, by_position_.data(), end, n_, sums);
    }

    /// e H eᵀ without the damping.
    Lanes objective() {
        for (std::int64_t p = 0; p < n_; ++p) by_position_[at(p)] = errors_[at(metric_.column(p))];
        Lanes sum = zero, squares = zero;
        std::array<Lanes, at_once> carried;
        for (auto end = n_; end > 0;) {
            const int count = end >= at_once ? at_once : 1;
            count == 1 ? carry<1>(end, carried.data()) : carry<at_once>(end, carried.data());
            for (int j = count; j-- > 0;) {
                const auto p = end - count + j;
                Lanes total = by_position_[at(p)] + carried[at(j)];
                for (auto i = p + 1; i < end; ++i) total += metric_.feedback(p)[i] * by_position_[at(i)];
                sum += metric_.pivot(p) * total * total;
                squares += by_position_[at(p)] * by_position_[at(p)];
            }
            end -= count;
        }
        return sum - metric_.damping() * squares;
    }

    /// Error feedback, with the scales as they are.
    void round_in_order() {
        std::vector<Group> groups;
        for (std::int64_t g = 0; g < n_ / codec_.group_size; ++g) groups.push_back(group(g));
        std::array<Lanes, at_once> carried;
        for (auto end = n_; end > 0;) {
            const int count = end >= at_once ? at_once : 1;
            count == 1 ? carry<1>(end, carried.data()) : carry<at_once>(end, carried.data());
            for (int j = count; j-- > 0;) {
                const auto p = end - count + j;
                const auto column = metric_.column(p);
                const auto& in_group = groups[at(column / codec_.group_size)];
                const Lanes weight = weights_[at(column)];
                Lanes total = carried[at(j)];
                for (auto i = p + 1; i < end; ++i) total += metric_.feedback(p)[i] * by_position_[at(i)];
                const Lanes level = nearest_level(weight - total, in_group);
                levels_[at(column)] = level;
                by_position_[at(p)] = in_group.scale * level + in_group.offset - weight;
            }
            end -= count;
        }
        for (std::int64_t p = 0; p < n_; ++p) errors_[at(metric_.column(p))] = by_position_[at(p)];
    }

    /// Scales, then integers of a block, each to its best value given all others.
    void refine(std::int64_t block) {
        const auto first = block * codec_.block_size;
        for (int c = 0; c < codec_.block_size; c += at_once)
            multiply<at_once>(metric_.row(first + c), n_, errors_.data(), 0, n_, &gradient_[at(c)]);
        refit_super_scale(block, &BlockScales::d);
        if (codec_.has_dmin) refit_super_scale(block, &BlockScales::dmin);
        for (int g = 0; g < codec_.n_groups(); ++g) {
            if (codec_.scale_least < codec_.scale_most) refit_scale(block, g);
            if (codec_.min_least < codec_.min_most) refit_min(block, g);
            refit_levels(block, g);
        }
    }

    /// An error of column `c` of the block changes: so do the gradients of the block.
    void change(std::int64_t first, std::int64_t c, Lanes by) {
        if (!any(by)) return;
        const float* h = metric_.row(first + c) + first;
        for (int k = 0; k < codec_.block_size; ++k) gradient_[at(k)] += h[k] * by;
    }

    /// Takes the errors of the block's columns [begin, end) anew from levels and scales.
    void update(std::int64_t block, int begin, int end) {
        const auto first = block * codec_.block_size;
        for (int c = begin; c < end; c += codec_.group_size) {
            const auto [scale, offset] = group((first + c) / codec_.group_size);
            for (auto i = first + c; i < first + c + codec_.group_size; ++i) {
                const Lanes error = scale * levels_[at(i)] + offset - weights_[at(i)];
                const Lanes by = error - errors_[at(i)];
                errors_[at(i)] = error;
                change(first, i - first, by);
            }
        }
    }

    struct Parabola {
        Lanes slope = zero, curvature = zero;
        /// Where it is lowest.
        Lanes step() const { return -ratio(slope, curvature); }
        float change(int lane, float step) const { return step * (2.0f * slope[lane] + step * curvature[lane]); }
    };
    /// e H eᵀ along `direction_` in the block's columns [begin, end).
    Parabola along(std::int64_t first, int begin, int end) const {
        Parabola parabola;
        for (int c = begin; c < end; ++c) {
            const float* h = metric_.row(first + c) + first;
            Lanes product = zero;
            for (int k = begin; k < end; ++k) product += h[k] * direction_[at(k)];
            parabola.slope += gradient_[at(c)] * direction_[at(c)];
            parabola.curvature += product * direction_[at(c)];
        }
        return parabola;
    }

    /// d or dmin.
    void refit_super_scale(std::int64_t block, float BlockScales::*which) {
        const auto first = block * codec_.block_size;
        for (int c = 0; c < codec_.block_size; ++c) {
            const auto g = at(c / codec_.group_size);
            for (int lane = 0; lane < n_lanes; ++lane) {
                const auto& of = scales(block, lane);
                direction_[at(c)][lane] = which == &BlockScales::d
                                              ? static_cast<float>(of.scale[g]) * levels_[at(first + c)][lane]
                                              : -static_cast<float>(of.min[g]);
            }
        }
        const auto parabola = along(first, 0, codec_.block_size);
        const Lanes step = parabola.step();
        for (int lane = 0; lane < n_lanes; ++lane) {
            auto& value = scales(block, lane).*which;
            const float wanted = ggml_fp16_to_fp32(ggml_fp32_to_fp16(value + step[lane]));
            if (std::isfinite(wanted) && parabola.change(lane, wanted - value) < 0.0f) value = wanted;
        }
        update(block, 0, codec_.block_size);
    }

    void refit_scale(std::int64_t block, int g) {
        const auto first = block * codec_.block_size;
        const int begin = g * codec_.group_size, end = begin + codec_.group_size;
        for (int c = begin; c < end; ++c)
            for (int lane = 0; lane < n_lanes; ++lane)
                direction_[at(c)][lane] = scales(block, lane).d * levels_[at(first + c)][lane];
        step_whole(
            block, begin, end, [&](int lane) -> std::int16_t& { return scales(block, lane).scale[at(g)]; },
            codec_.scale_least, codec_.scale_most);
    }

    void refit_min(std::int64_t block, int g) {
        const int begin = g * codec_.group_size, end = begin + codec_.group_size;
        for (int c = begin; c < end; ++c)
            for (int lane = 0; lane < n_lanes; ++lane) direction_[at(c)][lane] = -scales(block, lane).dmin;
        step_whole(
            block, begin, end, [&](int lane) -> std::int16_t& { return scales(block, lane).min[at(g)]; },
            codec_.min_least, codec_.min_most);
    }

    template <typename Value>
    void step_whole(std::int64_t block, int begin, int end, const Value& value, int least, int most) {
        const auto parabola = along(block * codec_.block_size, begin, end);
        const Lanes step = smaller(larger(nearest_whole(parabola.step()), fill(-1000.0f)), fill(1000.0f));
        bool changed = false;
        for (int lane = 0; lane < n_lanes; ++lane) {
            auto& stored = value(lane);
            const auto wanted =
                static_cast<std::int16_t>(std::clamp(stored + static_cast<int>(step[lane]), least, most));
            if (wanted == stored || !(parabola.change(lane, static_cast<float>(wanted - stored)) < 0.0f)) continue;
            stored = wanted;
            changed = true;
        }
        if (changed) update(block, begin, end);
    }

    void refit_levels(std::int64_t block, int g) {
        const auto first = block * codec_.block_size;
        const auto in_group = group(first / codec_.group_size + g);
        for (auto i = first + g * codec_.group_size; i < first + (g + 1) * codec_.group_size; ++i) {
            const float* h = metric_.row(i);
            const Lanes target = weights_[at(i)] + errors_[at(i)] - gradient_[at(i - first)] / h[i];
            const Lanes level = nearest_level(target, in_group);
            const Lanes error = in_group.scale * level + in_group.offset - weights_[at(i)];
            const Lanes by = error - errors_[at(i)];
            levels_[at(i)] = level;
            errors_[at(i)] = error;
            change(first, i - first, by);
        }
    }

    const BlockCodec& codec_;
    const InputMetric& metric_;
    std::int64_t n_;
    std::int64_t n_blocks_;
    std::vector<Lanes> weights_, levels_, errors_;  // by column
    std::vector<Lanes> by_position_;                // errors in the order of rounding
    std::vector<Lanes> gradient_;                   // of a block: H e
    std::vector<Lanes> direction_;
    std::vector<BlockScales> scales_;  // by block and lane
    std::vector<float> floats_;
    std::vector<std::uint8_t> codes_;
};

}  // namespace

std::int64_t round_with_feedback(const BlockCodec& codec, const InputMetric& metric, const RowReader& read_row,
                                 std::span<std::byte> rows, int threads, const FeedbackOptions& options) {
    if (!metric.usable()) return 0;
    const auto row_bytes = ggml_row_size(codec.type, metric.n_cols());
    assert(rows.size() % row_bytes == 0);
    const auto n_rows = static_cast<std::int64_t>(rows.size() / row_bytes);
    std::atomic<std::int64_t> changed{0};
    parallel_chunks(n_rows, n_lanes, threads, [&](std::int64_t begin, std::int64_t end) {
        RowBatch batch(codec, metric);
        changed += batch.improve(read_row, begin, end, rows.data(), options.sweeps);
    });
    return changed;
}

}  // namespace cerebellum
