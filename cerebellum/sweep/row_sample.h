#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "cerebellum/core/encoding.h"

namespace cerebellum {

/// Some rows of every matrix of a tensor in another type, one matrix after the other: the same bytes that the rows have
/// in the whole tensor of that type. `rows` ascend.
using RowQuantizer = std::function<std::vector<std::byte>(const std::string& tensor, const Encoding& type,
                                                          std::span<const std::int64_t> rows)>;

/// Of so many rows one in each of `n_strata` parts of about equal size, drawn by chance, ascending: the same ones for
/// the same tensor on every machine. All rows where there are not even twice as many: then empty, since nothing is
/// saved.
std::vector<std::int64_t> sample_rows(const std::string& tensor, std::int64_t n_rows, std::int64_t n_strata);

/// How many rows stand for all of a matrix: a sixteenth, but enough that their errors average out.
constexpr std::int64_t rows_for(std::int64_t n_rows) {
    constexpr std::int64_t share = 16, least = 192;
    return std::max(least, n_rows / share);
}

/// What changing the sampled rows alone does, carried over to all rows.
///
/// The types that are measured both ways, anchors, say by which factor the whole does more: sampled rows may matter
/// more or less than others, and what changes of several rows do together need not be their sum. For any other type the
/// geometric mean of the anchors' factors is taken (a ratio estimator: Cochran, Sampling Techniques, 3rd ed., ch. 6).
/// Windows are taken one by one, so that a figure depends on its own window only.
class RowScaling {
  public:
    void add_whole(const Encoding& anchor, std::size_t window, double energy) {
        whole_[{anchor.rounding, window}][anchor] = energy;
    }
    void add_sampled(const Encoding& anchor, std::size_t window, double energy) {
        sampled_[{anchor.rounding, window}][anchor] = energy;
    }
    /// Energy of all rows from that of the sampled ones. Without an anchor of the same rounding: by the factor given.
    double to_whole(const Encoding& type, std::size_t window, double sampled_energy, double factor) const;

  private:
    using Key = std::pair<Rounding, std::size_t>;
    std::map<Key, std::map<Encoding, double>> whole_, sampled_;
};

}  // namespace cerebellum
