#include "cerebellum/quantize/cholesky.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <vector>

#include "cerebellum/quantize/lane_vector.h"

namespace cerebellum {

namespace {

constexpr std::int64_t panel = 64;  // columns that are subtracted from all behind them at once
using Vector = lanes::NativeFloats;
constexpr int vectors = 2;
constexpr std::int64_t strip = vectors * lanes::native_width;  // rows whose sums are under way
constexpr int columns_at_once = 4;                             // ... in so many columns: half of the registers
static_assert(strip % columns_at_once == 0);

Vector load(const float* from) {
    Vector result;
    std::memcpy(&result, from, sizeof result);
    return result;
}

class Factorization {
  public:
    Factorization(float* matrix, std::int64_t n) : a_(matrix), n_(n) {}

    bool run() {
        for (std::int64_t first = 0; first < n_; first += panel) {
            const auto last = std::min(first + panel, n_);
            if (!factor_panel(first, last)) return false;
            pack(first, last);
            for (auto row = last; row < n_; row += strip) subtract_from(row, last);
        }
        return true;
    }

  private:
    float* column(std::int64_t j) const { return a_ + j * n_; }

    bool factor_panel(std::int64_t first, std::int64_t last) const {
        for (auto j = first; j < last; ++j) {
            float* const target = column(j);
            for (auto k = first; k < j; ++k) {
                const float* const source = column(k);
                const float factor = source[j];
                for (auto i = j; i < n_; ++i) target[i] -= factor * source[i];
            }
            if (!(target[j] > 0.0f)) return false;
            const float diagonal = std::sqrt(target[j]);
            target[j] = diagonal;
            for (auto i = j + 1; i < n_; ++i) target[i] /= diagonal;
        }
        return true;
    }

    /// Copies what the panel has below its own rows, strip by strip, so that reading runs through memory: packed_ is
    /// [strip of rows][column of the panel][row of the strip]. Rows behind the last one are zero.
    void pack(std::int64_t first, std::int64_t last) {
        const auto n_strips = (n_ - last + strip - 1) / strip;
        packed_.assign(static_cast<std::size_t>(n_strips * panel * strip), 0.0f);
        for (std::int64_t s = 0; s < n_strips; ++s) {
            const auto row = last + s * strip;
            for (auto k = first; k < last; ++k)
                std::copy_n(column(k) + row, std::min(strip, n_ - row),
                            packed_.data() + (s * panel + k - first) * strip);
        }
    }

    /// Subtracts the panel, which ended before `last`, from the rows [row, row + strip) of all columns that reach
    /// there.
    void subtract_from(std::int64_t row, std::int64_t last) const {
        const float* const rows = packed_.data() + (row - last) * panel;
        for (auto j = last; j < std::min(row + strip, n_); j += columns_at_once) {
            const auto offset = j - last;
            const float* const factors = packed_.data() + offset / strip * strip * panel + offset % strip;
            float* targets[columns_at_once];
            for (int c = 0; c < columns_at_once; ++c) targets[c] = column(std::min(j + c, n_ - 1)) + row;
            const auto n_columns = std::min<std::int64_t>(columns_at_once, n_ - j);
            if (row + strip <= n_ && n_columns == columns_at_once) {
                subtract(rows, factors, targets);
                continue;
            }
            for (std::int64_t c = 0; c < n_columns; ++c)
                for (std::int64_t i = 0; i < std::min(strip, n_ - row); ++i)
                    for (std::int64_t k = 0; k < panel; ++k)
                        targets[c][i] -= factors[k * strip + c] * rows[k * strip + i];
        }
    }

    static void subtract(const float* rows, const float* factors, float* const* targets) {
        Vector sums[columns_at_once][vectors];
        for (int c = 0; c < columns_at_once; ++c)
            for (int v = 0; v < vectors; ++v) sums[c][v] = load(targets[c] + v * lanes::native_width);
        for (std::int64_t k = 0; k < panel; ++k, rows += strip, factors += strip) {
            const Vector low = load(rows), high = load(rows + lanes::native_width);
            for (int c = 0; c < columns_at_once; ++c) {
                sums[c][0] -= factors[c] * low;
                sums[c][1] -= factors[c] * high;
            }
        }
        for (int c = 0; c < columns_at_once; ++c)
            for (int v = 0; v < vectors; ++v)
                std::memcpy(targets[c] + v * lanes::native_width, &sums[c][v], sizeof(Vector));
    }

    float* a_;
    std::int64_t n_;
    std::vector<float> packed_;
};

}  // namespace

bool factor_cholesky(std::span<float> matrix, std::int64_t n) {
    assert(matrix.size() == static_cast<std::size_t>(n * n));
    return Factorization(matrix.data(), n).run();
}

}  // namespace cerebellum
