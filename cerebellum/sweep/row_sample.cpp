#include "cerebellum/sweep/row_sample.h"

#include <algorithm>
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
    if (!(sampled_energy > 0.0)) return sampled_energy;
    std::map<double, double> log_factors;  // by log energy of the sampled rows
    if (whole != whole_.end() && sampled != sampled_.end())
        for (const auto& [anchor, energy] : sampled->second)
            if (const auto all = whole->second.find(anchor);
                all != whole->second.end() && energy > 0.0 && all->second > 0.0)
                log_factors[std::log(energy)] = std::log(all->second / energy);
    if (log_factors.empty()) return factor * sampled_energy;
    const double at = std::log(sampled_energy);
    const auto above = log_factors.lower_bound(at);
    if (above == log_factors.begin()) return std::exp(above->second) * sampled_energy;
    const auto below = std::prev(above);
    if (above == log_factors.end()) return std::exp(below->second) * sampled_energy;
    const double t = (at - below->first) / (above->first - below->first);
    return std::exp(below->second + t * (above->second - below->second)) * sampled_energy;
}

}  // namespace cerebellum
