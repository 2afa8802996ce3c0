#pragma once

#include "cerebellum/quantize/lane_vector.h"

/// The searches of ggml's quantizers for the scale of n weights, lane by lane. Every product and sum is formed as ggml
/// forms it, from left to right; where ggml branches, both ways are computed and each lane keeps its own.
namespace cerebellum::lanes {

inline constexpr float smallest_group = 1e-15f;  // a group of weights below is all zero to ggml

/// Steps of a search over the inverse of the scale.
struct Steps {
    float first, step;
    int last;
};

/// weight ≈ scale·level − offset with levels 0 … top.
struct RangeFit {
    Floats scale, offset;
    // Where the levels came from, as they count only where a scale rounds to zero: level = inverse·(weight − base).
    Floats inverse, base;
    Ints flat;  // all levels are 0

    Ints level(const Floats& x, float top) const {
        const Floats found = smaller(larger(nearest_whole(inverse * (x - base)), fill(0.0f)), fill(top));
        return select(flat, fill(0), to_ints(found));
    }
};

template <int n>
struct RangeSearch {
    const Floats* x;
    const Floats* w;
    Floats top;
    Floats sum_w, sum_x;
    Floats levels[n];

    /// Σ w·diff, with diff = |…| or (…)² of scale·level + base − weight.
    template <bool by_magnitude>
    Floats error(const Floats& scale, const Floats& base) const {
        Floats sum = {};
        for (int i = 0; i < n; ++i) {
            const Floats difference = scale * levels[i] + base - x[i];
            sum += w[i] * (by_magnitude ? absolute(difference) : difference * difference);
        }
        return sum;
    }
    Floats nearest_level(const Floats& inverse, const Floats& base, int i) const {
        return smaller(larger(nearest_whole(inverse * (x[i] - base)), fill(0.0f)), top);
    }

    /// The weighted straight line through (level, weight), with levels by `inverse` and `base`. Where `usable` does not
    /// hold there is none.
    void line(const Floats& inverse, const Floats& base, Floats& scale, Floats& intercept, Ints& usable) {
        Floats sum_l = {}, sum_l2 = {}, sum_xl = {};
        for (int i = 0; i < n; ++i) {
            const Floats level = nearest_level(inverse, base, i);
            levels[i] = level;
            const Floats wl = w[i] * level;
            sum_l += wl;
            sum_l2 += wl * level;
            sum_xl += wl * x[i];
        }
        const Floats determinant = sum_w * sum_l2 - sum_l * sum_l;
        usable = determinant > 0.0f;
        scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        intercept = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
        const Ints positive = intercept > 0.0f;
        scale = select(positive, sum_xl / sum_l2, scale);
        intercept = select(positive, fill(0.0f), intercept);
    }
};

/// make_qkx2_quants and make_qkx3_quants (which differ in nothing that matters where weights are given).
/// Sets `odd` in lanes that meet numbers which nearest_int does not round.
template <int n, bool by_magnitude>
RangeFit fit_range(const Floats* x, const Floats* w, float top, Steps steps, Ints& odd) {
    Floats least = x[0], most = x[0];
    RangeSearch<n> search{x, w, fill(top), w[0], w[0] * x[0], {}};
    for (int i = 1; i < n; ++i) {
        least = smaller(x[i], least);
        most = larger(x[i], most);
        search.sum_w += w[i];
        search.sum_x += w[i] * x[i];
    }
    const Floats smallest = least;
    least = select(least > 0.0f, fill(0.0f), least);
    RangeFit fit;
    fit.flat = most <= least;
    const Floats flat_offset = -least;
    fit.inverse = top / (most - least);
    fit.base = least;
    fit.scale = 1.0f / fit.inverse;
    Ints fine = is_ordinary(fit.inverse);
    for (int i = 0; i < n; ++i) search.levels[i] = search.nearest_level(fit.inverse, least, i);
    Floats best = search.template error<by_magnitude>(fit.scale, least);
    for (int step = 0; step <= steps.last; ++step) {
        const Floats inverse = (steps.first + steps.step * static_cast<float>(step) + top) / (most - least);
        fine &= is_rounded(inverse * (smallest - least)) & is_rounded(inverse * (most - least));
        Floats scale, intercept;
        Ints better;
        search.line(inverse, least, scale, intercept, better);
        const Floats error = search.template error<by_magnitude>(scale, intercept);
        better &= error < best;
        best = select(better, error, best);
        fit.inverse = select(better, inverse, fit.inverse);
        fit.base = select(better, least, fit.base);
        fit.scale = select(better, scale, fit.scale);
        least = select(better, intercept, least);
    }
    odd |= ~(fine | fit.flat);
    fit.scale = select(fit.flat, fill(0.0f), fit.scale);
    fit.offset = select(fit.flat, flat_offset, -least);
    return fit;
}

/// weight ≈ scale·level with levels −half … half − 1.
struct SymmetricFit {
    Floats scale;
    Floats inverse;  // level = inverse·weight
    Ints zero;       // a group of zeros: its levels are stored as 0, not as half

    /// As stored: 0 … 2·half − 1.
    Ints level(const Floats& x, float half) const {
        const Floats found = smaller(larger(nearest_whole(inverse * x), fill(-half)), fill(half - 1.0f)) + half;
        return select(zero, fill(0), to_ints(found));
    }
};

/// The first weight of the largest magnitude.
template <int n>
void find_extreme(const Floats* x, Floats& extreme, Floats& magnitude) {
    extreme = magnitude = fill(0.0f);
    for (int i = 0; i < n; ++i) {
        const Floats here = absolute(x[i]);
        extreme = select(here > magnitude, x[i], extreme);
        magnitude = larger(here, magnitude);
    }
}

/// make_qx_quants with weights `w`. The numbers are ordinary.
template <int n>
SymmetricFit fit_symmetric(const Floats* x, const Floats* w, float half) {
    Floats extreme, magnitude;
    find_extreme<n>(x, extreme, magnitude);
    SymmetricFit fit;
    fit.zero = magnitude < smallest_group;
    Floats wx[n];
    for (int i = 0; i < n; ++i) wx[i] = w[i] * x[i];
    Floats sum_xl, sum_l2;
    const auto sum = [&](const Floats& inverse) {
        sum_xl = sum_l2 = fill(0.0f);
        for (int i = 0; i < n; ++i) {
            const Floats level = smaller(larger(nearest_whole(inverse * x[i]), fill(-half)), fill(half - 1.0f));
            sum_xl += wx[i] * level;
            sum_l2 += w[i] * level * level;
        }
    };
    fit.inverse = -half / extreme;
    sum(fit.inverse);
    fit.scale = select(sum_l2 != 0.0f, sum_xl / sum_l2, fill(0.0f));
    Floats best = fit.scale * sum_xl;
    for (int step = -9; step <= 9; ++step) {
        if (step == 0) continue;
        const Floats inverse = -(half + 0.1f * static_cast<float>(step)) / extreme;
        sum(inverse);
        const Ints better = (sum_l2 > 0.0f) & (sum_xl * sum_xl > best * sum_l2);
        const Floats scale = sum_xl / sum_l2;
        fit.inverse = select(better, inverse, fit.inverse);
        fit.scale = select(better, scale, fit.scale);
        best = select(better, scale * sum_xl, best);
    }
    fit.scale = select(fit.zero, fill(0.0f), fit.scale);
    return fit;
}

/// make_qp_quants: n numbers ≥ 0 (nearly always) as the result times levels 0 … top, which ggml keeps in bytes.
template <int n>
Floats fit_positive(const Floats* x, const Floats* w, std::int32_t top, Ints* levels) {
    const auto top_float = static_cast<float>(top);
    Floats most = {};
    for (int i = 0; i < n; ++i) most = select(most > x[i], most, x[i]);
    const Ints zero = most < smallest_group;
    Floats inverse = top_float / most;
    const Floats first_scale = 1.0f / inverse;
    Floats best = {};
    for (int i = 0; i < n; ++i) {
        const Floats difference = x[i] - first_scale * to_floats(nearest_int(inverse * x[i]) & 255);
        best += w[i] * difference * difference;
    }
    for (int step = -4; step <= 4; ++step) {
        if (step == 0) continue;
        const Floats candidate = (0.1f * static_cast<float>(step) + top_float) / most;
        const Floats scale = 1.0f / candidate;
        Floats error = {};
        for (int i = 0; i < n; ++i) {
            const Floats difference = x[i] - scale * to_floats(smaller(nearest_int(candidate * x[i]), fill(top)));
            error += w[i] * difference * difference;
        }
        const Ints better = error < best;
        best = select(better, error, best);
        inverse = select(better, candidate, inverse);
    }
    Floats sum_xl = {}, sum_l2 = {};
    for (int i = 0; i < n; ++i) {
        const Ints level = smaller(nearest_int(inverse * x[i]), fill(top));
        levels[i] = level & 255;
        sum_xl += w[i] * x[i] * to_floats(level);
        sum_l2 += w[i] * to_floats(level) * to_floats(level);
    }
    // One level at a time, as long as that helps.
    for (int pass = 0; pass < 5; ++pass) {
        Ints changed = {};
        for (int i = 0; i < n; ++i) {
            const Floats old = to_floats(levels[i]);
            Floats xl = sum_xl - w[i] * x[i] * old;
            Floats l2 = sum_l2 - w[i] * old * old;
            const Ints level = smaller(nearest_int(x[i] * l2 / xl), fill(top));
            Ints better = (xl > 0.0f) & (l2 > 0.0f) & (level != levels[i]);
            xl += w[i] * x[i] * to_floats(level);
            l2 += w[i] * to_floats(level) * to_floats(level);
            better &= xl * xl * sum_l2 > sum_xl * sum_xl * l2;
            levels[i] = select(better, level & 255, levels[i]);
            sum_xl = select(better, xl, sum_xl);
            sum_l2 = select(better, l2, sum_l2);
            changed |= better;
        }
        if (!any(changed & ~zero)) break;
    }
    for (int i = 0; i < n; ++i) levels[i] = select(zero, fill(0), levels[i]);
    return select(zero | ~(sum_l2 > 0.0f), fill(0.0f), sum_xl / sum_l2);
}

}  // namespace cerebellum::lanes
