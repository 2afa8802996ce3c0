#pragma once

#include <cfloat>
#include <cstring>

#include "cerebellum/quantize/lane_codebook.h"
#include "cerebellum/quantize/lane_search.h"

/// Rounding groups of weights to points of a codebook. Everything is done for a block in each lane, but for looking
/// through the neighbours of a place: places differ from block to block, so there each lane in turn has a neighbour in
/// each SIMD lane. Sums are formed as ggml forms them, and of equally near neighbours the first one is taken.
namespace cerebellum::lanes {

/// Some numbers of each block: of one weight side by side.
using Rows = const float (*)[width];

/// What the levels of a part of 8 or 4 weights stand for, as often as a vector has room for them.
struct alignas(64) LevelValues {
    float of[16];
};
/// 1, 3, 5 …
template <int part>
constexpr LevelValues odd_numbers() {
    LevelValues values{};
    for (int i = 0; i < 16; ++i) values.of[i] = static_cast<float>(2 * (i % (part == 8 ? 4 : 8)) + 1);
    return values;
}

#if defined(__AVX2__)
constexpr int neighbours_at_once = native_width;

inline NativeInts load_places(const std::uint16_t* from) {
#if defined(__AVX512F__)
    return std::bit_cast<NativeInts>(
        _mm512_maskz_cvtepu16_epi32(all_lanes, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#else
    return std::bit_cast<NativeInts>(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#endif
}
/// The table's number for the level in each lane's lowest bits; the table repeats after 4 (parts of 8) or 8 levels.
template <int part>
NativeFloats look_up_level(NativeFloats table, NativeInts place) {
#if defined(__AVX512F__)
    if constexpr (part == 8) return _mm512_maskz_permutevar_ps(all_lanes, table, std::bit_cast<__m512i>(place));
    return _mm512_maskz_permutexvar_ps(all_lanes, std::bit_cast<__m512i>(place), table);
#else
    if constexpr (part == 8) return _mm256_permutevar_ps(table, std::bit_cast<__m256i>(place));
    return _mm256_permutevar8x32_ps(table, std::bit_cast<__m256i>(place));
#endif
}
inline float least_of(NativeFloats x) {
#if defined(__AVX512F__)
    // Not by the intrinsic for halves: all_lanes says why.
    struct Halves {
        __m256 low, high;
    };
    const auto halves = std::bit_cast<Halves>(x);
    const __m256 eight = _mm256_min_ps(halves.low, halves.high);
#else
    const __m256 eight = x;
#endif
    __m128 four = _mm_min_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_min_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_min_ss(four, _mm_shuffle_ps(four, four, 1)));
}
inline std::uint32_t lanes_equal_to(NativeFloats x, float value) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(x, _mm512_set1_ps(value), _CMP_EQ_OQ);
#else
    return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_set1_ps(value), _CMP_EQ_OQ)));
#endif
}
/// The first of the least numbers, those of row 0 first; `row` says in which row each was found.
inline int position_of(float smallest, NativeFloats least, NativeInts row) {
    const std::uint32_t equal = lanes_equal_to(least, smallest);
    int lane = std::countr_zero(equal);
    int position = row[lane] * native_width + lane;
    for (std::uint32_t left = equal & (equal - 1); left != 0; left &= left - 1) {
        lane = std::countr_zero(left);
        position = std::min(position, row[lane] * native_width + lane);
    }
    return position;
}

/// The neighbour with the least Σ w·(scale·value − x)². A weight can lie at a few levels only, so its term is computed
/// once for each of these and then looked up.
template <int part>
[[gnu::always_inline]] inline std::int32_t nearest_neighbour(const std::uint16_t* neighbours, int count, Rows x, Rows w,
                                                             int lane, float scale, const LevelValues& levels,
                                                             bool& found) {
    constexpr int bits = part == 8 ? 2 : 3;
    NativeFloats values;
    std::memcpy(&values, levels.of, sizeof values);
    values = scale * values;
    NativeFloats terms[part];
    for (int i = 0; i < part; ++i) {
        const NativeFloats difference = values - x[i][lane];
        terms[i] = w[i][lane] * difference * difference;
    }
    const auto distances = [&](int k) {
        const NativeInts places = load_places(neighbours + k * native_width);
        NativeFloats sum = look_up_level<part>(terms[0], places);
        for (int i = 1; i < part; ++i) sum += look_up_level<part>(terms[i], places >> (bits * i));
        return sum;
    };
    NativeFloats least = distances(0);
    if (count == native_width) {
        const float smallest = least_of(least);
        found = smallest < FLT_MAX;
        return neighbours[std::countr_zero(lanes_equal_to(least, smallest)) % native_width];
    }
    NativeInts row = {};
    for (int k = 1; k * native_width < count; ++k) {
        const NativeFloats next = distances(k);
        const NativeInts nearer = next < least;
        least = nearer ? next : least;
        row = nearer ? NativeInts{} + k : row;
    }
    const float smallest = least_of(least);
    found = smallest < FLT_MAX;
    return neighbours[found ? position_of(smallest, least, row) : 0];
}
#else
constexpr int neighbours_at_once = 1;

template <int part>
std::int32_t nearest_neighbour(const std::uint16_t* neighbours, int count, Rows x, Rows w, int lane, float scale,
                               const LevelValues& levels, bool& found) {
    constexpr int bits = part == 8 ? 2 : 3;
    constexpr int n_levels = 1 << bits;
    float terms[part][n_levels];
    for (int i = 0; i < part; ++i)
        for (int level = 0; level < n_levels; ++level) {
            const float difference = scale * levels.of[level] - x[i][lane];
            terms[i][level] = w[i][lane] * difference * difference;
        }
    float least = FLT_MAX;
    std::int32_t nearest = neighbours[0];
    for (int k = 0; k < count; ++k) {
        float distance = 0.0f;
        for (int i = 0; i < part; ++i) distance += terms[i][neighbours[k] >> (bits * i) & (n_levels - 1)];
        if (distance < least) {
            least = distance;
            nearest = neighbours[k];
        }
    }
    found = least < FLT_MAX;
    return nearest;
}
#endif

/// Of one part, in lanes `where`, the places that are not points become the nearest ones; the result says which are
/// left. `key` is that of each lane's place; levels_of(lane) gives the LevelValues. Adds lanes without an answer to
/// `failed`.
template <int part, typename LevelsOf>
Ints snap_to_book(const Codebook& book, const Ints& key, const Ints& where, Rows x, Rows w, const Floats& scale,
                  const LevelsOf& levels_of, Ints& place, Ints& failed) {
    std::int32_t places[width], keys[width], is_point[width];
    float scales[width];
    to_row(place, places);
    to_row(key, keys);
    to_row(scale, scales);
    std::memset(is_point, -1, sizeof is_point);
    for (std::uint32_t left = lane_bits(where); left != 0; left &= left - 1) {
        const int lane = std::countr_zero(left);
        const auto& found_there = book.all_places[static_cast<std::size_t>(keys[lane])];
        if (found_there.count == 0) continue;
        bool found;
        places[lane] = nearest_neighbour<part>(book.neighbours.data() + found_there.first, found_there.count, x, w,
                                               lane, scales[lane], levels_of(lane), found);
        is_point[lane] = 0;
        if (!found) failed.set(lane, -1);
    }
    from_row(places, place);
    Ints result;
    from_row(is_point, result);
    return result;
}

/// What is stored for each lane's point.
inline Ints index_of(const Codebook& book, const Ints& point) {
    Ints result;
    for (int lane = 0; lane < width; ++lane) result.set(lane, book.index[static_cast<std::size_t>(point[lane])]);
    return result;
}

/// A group of n weights ≈ scale·(2·level + 1), in parts of so many weights.
template <int n, int part>
class GroupSearch {
  public:
    static constexpr int n_parts = n / part;
    static constexpr int bits = part == 8 ? 2 : 3;
    static constexpr std::int32_t top = part == 8 ? 2 : 7;

    /// Lanes that are not live are left alone. `x` and `w` stay where they are.
    GroupSearch(const Codebook& book, const Floats* x, const Floats* w, const Ints& live)
        : book_(book), x_(x), w_(w), live_(live) {
        for (int i = 0; i < n; ++i) {
            wx_[i] = w[i] * x[i];
            to_row(x[i], rows_[i]);
            to_row(square_root(w[i]), roots_[i]);
        }
        for (int k = 0; k < n_parts; ++k) points_[k] = fill(0);
    }

    /// Before the first try: the scale where none helps, and whether the parts count as points then.
    void start(const Floats& scale, const Ints& on_book) {
        scale_ = scale;
        best_ = fill(0.0f);
        for (int k = 0; k < n_parts; ++k) on_book_[k] = on_book;
    }
    void try_inverse(const Floats& inverse) {
        const Floats scale = 1.0f / inverse;
        Ints points[n_parts], on_book[n_parts];
        for (int k = 0; k < n_parts; ++k) points[k] = round(k, inverse, scale, live_, on_book[k]);
        Floats sum_qx, sum_q2;
        sum(points, sum_qx, sum_q2);
        const Ints better = (sum_q2 > 0.0f) & (sum_qx * sum_qx > best_ * sum_q2);
        const Floats candidate = sum_qx / sum_q2;
        scale_ = select(better, candidate, scale_);
        best_ = select(better, candidate * sum_qx, best_);
        for (int k = 0; k < n_parts; ++k) {
            points_[k] = select(better, points[k], points_[k]);
            on_book_[k] = select(better, on_book[k], on_book_[k]);
        }
    }
    Ints all_on_book() const {
        Ints all = on_book_[0];
        for (int k = 1; k < n_parts; ++k) all &= on_book_[k];
        return all;
    }
    /// Rounds with the scale that has been found: parts off the book where it is positive and, if not `only_off_book`,
    /// the others of such groups, too. Then fits the scale to what came out.
    void settle(const Ints& where, bool only_off_book) {
        const Ints some = where & live_ & (scale_ > 0.0f);
        const Floats inverse = 1.0f / scale_;
        for (int k = 0; k < n_parts; ++k) {
            const Ints here = only_off_book ? some & ~on_book_[k] : some;
            if (!any(here)) continue;
            Ints on_book;
            const Ints point = round(k, inverse, scale_, here, on_book);
            points_[k] = select(here, point, points_[k]);
        }
        Floats sum_qx, sum_q2;
        sum(points_, sum_qx, sum_q2);
        scale_ = select(some & (sum_q2 > 0.0f), sum_qx / sum_q2, scale_);
    }

    const Floats& scale() const { return scale_; }
    /// Lanes that had a place without a nearest neighbour.
    const Ints& failed() const { return failed_; }
    /// What is stored for part k.
    Ints index(int k) const { return select(live_, index_of(book_, points_[k]), fill(0)); }

  private:
    Ints round(int k, const Floats& inverse, const Floats& scale, const Ints& where, Ints& on_book) {
        Ints packed = {}, key = {};
        for (int i = part - 1; i >= 0; --i) {
            const Floats level = 0.5f * (inverse * x_[part * k + i] - 1.0f);
            const Ints clamped = larger(fill(0), smaller(fill(top), nearest_int(level)));
            packed = packed << bits | clamped;
            if constexpr (part == 8) key = key + key + key + clamped;
        }
        static constexpr auto levels = odd_numbers<part>();
        on_book = snap_to_book<part>(
            book_, part == 8 ? key : packed, where, rows_ + part * k, roots_ + part * k, scale,
            [](int) -> const LevelValues& { return levels; }, packed, failed_);
        return packed;
    }
    void sum(const Ints* points, Floats& sum_qx, Floats& sum_q2) const {
        sum_qx = sum_q2 = fill(0.0f);
        for (int i = 0; i < n; ++i) {
            const Ints level = points[i / part] >> (bits * (i % part)) & ((1 << bits) - 1);
            const Floats q = to_floats(level + level + 1);
            sum_qx += wx_[i] * q;
            sum_q2 += w_[i] * q * q;
        }
    }

    const Codebook& book_;
    const Floats *x_, *w_;
    Ints live_, failed_ = fill(0);
    Floats wx_[n];
    alignas(64) float rows_[n][width];
    alignas(64) float roots_[n][width];
    Ints points_[n_parts], on_book_[n_parts];
    Floats scale_, best_;
};

/// Parts of 8 weights as magnitudes and signs.
template <bool even>
void split_signs(const Floats* x, const Floats* w, Floats* magnitudes, Ints& signs) {
    Ints odd = fill(0);
    signs = fill(0);
    for (int i = 0; i < 8; ++i) {
        const Ints negative = x[i] < 0.0f;
        magnitudes[i] = select(negative, -x[i], x[i]);
        signs |= negative & (1 << i);
        odd = odd != negative;  // one bit of each would do
    }
    if constexpr (!even) return;
    // An odd number of signs cannot be stored: the weight that counts least changes its own.
    Floats least = w[0] * x[0] * x[0];
    Ints bit = fill(1);
    for (int i = 1; i < 8; ++i) {
        const Floats here = w[i] * x[i] * x[i];
        const Ints smallest = here < least;
        least = select(smallest, here, least);
        bit = select(smallest, fill(1 << i), bit);
    }
    bit &= odd;
    for (int i = 0; i < 8; ++i) magnitudes[i] = select((bit & (1 << i)) != 0, -magnitudes[i], magnitudes[i]);
    signs = ((signs | bit) - (signs & bit)) & 127;  // exclusive or
}

constexpr int super_block = 256;

/// What ggml's codebook types have in common: the weights of 256, and groups whose scales are levels of the block's.
template <int group>
struct CodebookBlock {
    static constexpr int n_groups = super_block / group;

    explicit CodebookBlock(std::span<const BlockJob> jobs) : batch(jobs) {
        batch.load_weights(0, super_block, x);
        sum_of_squares = fill(0.0f);
        for (int i = 0; i < super_block; ++i) sum_of_squares += x[i] * x[i];
        odd = ~is_ordinary(sum_of_squares);
    }
    /// Importance of a group's weights as it counts beside a spread of the block.
    void load_importance(int j, const Floats& spread, Floats* w) {
        batch.load_importance(group * j, group, w);
        for (int i = 0; i < group; ++i) {
            w[i] = w[i] * square_root(spread + x[group * j + i] * x[group * j + i]);
            odd |= ~is_ordinary(w[i]);
        }
    }
    void set_scale(int j, const Floats& scale, const Ints& live) {
        scales[j] = select(live, scale, fill(0.0f));
        largest = larger(largest, scales[j]);
        odd |= live & ~is_ordinary(scale);
        some_live |= live;
    }
    /// The largest scale is `parts` units; from then on level(j) is what is stored for group j's. A block whose groups
    /// all came to zero is another matter for ggml than one of zeros.
    Floats find_unit(float parts) {
        const Floats unit = largest / parts;
        const Ints zero = largest == 0.0f;
        inverse = select(zero, fill(0.0f), 1.0f / unit);
        odd |= zero & some_live;
        return unit;
    }
    void store_scale(float factor) { batch.store_halves(0, find_unit(31.0f) * factor); }
    Ints level(int j, std::int32_t top = 15) const {
        return larger(fill(0), smaller(fill(top), nearest_int(0.5f * (inverse * scales[j] - 1.0f))));
    }

    Batch batch;
    Floats x[super_block];
    Floats sum_of_squares;
    Floats scales[n_groups];
    Floats largest = fill(0.0f), inverse;
    Ints odd, some_live = fill(0);
};

template <int n>
Floats largest_of(const Floats* x) {
    Floats largest = x[0];
    for (int i = 1; i < n; ++i) largest = larger(largest, x[i]);
    return largest;
}

}  // namespace cerebellum::lanes
