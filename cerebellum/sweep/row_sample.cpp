#include "cerebellum/sweep/row_sample.h"

#include <cmath>
#include <random>

namespace cerebellum {

namespace {

/// FNV-1a: a seed that is the same everywhere, which std::hash does not promise.
std::uint64_t seed_of(const std::string& name) {
    std::uint64_t seed = 14695981039346656037U;
    for (const char c : name) seed = (seed ^ static_cast<unsigned char>(c)) * 1099511628211U;
    return seed;
}

}  // namespace

std::vector<std::int64_t> sample_rows(const std::string& tensor, std::int64_t n_rows, std::int64_t n_strata) {
    std::vector<std::int64_t> rows;
    if (n_strata <= 0 || n_rows < 2 * n_strata) return rows;
    // Not std::uniform_int_distribution, whose numbers each library draws in its own way.
    std::mt19937_64 random(seed_of(tensor));
    for (std::int64_t i = 0; i < n_strata; ++i) {
        const auto begin = i * n_rows / n_strata, end = (i + 1) * n_rows / n_strata;
        rows.push_back(begin + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(end - begin)));
    }
    return rows;
}

double RowScaling::to_whole(const Encoding& type, std::size_t window, double sampled_energy, double factor) const {
    const Key key{type.rounding, window};
    const auto whole = whole_.find(key), sampled = sampled_.find(key);
    double sum = 0.0, count = 0.0;
    if (whole != whole_.end() && sampled != sampled_.end())
        for (const auto& [anchor, energy] : sampled->second)
            if (const auto all = whole->second.find(anchor);
                all != whole->second.end() && energy > 0.0 && all->second > 0.0) {
                sum += std::log(all->second / energy);
                count += 1.0;
            }
    return sampled_energy * (count > 0.0 ? std::exp(sum / count) : factor);
}

}  // namespace cerebellum
