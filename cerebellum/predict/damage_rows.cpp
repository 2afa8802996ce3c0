#include "cerebellum/predict/damage_rows.h"

#include <fmt/format.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "cerebellum/core/stats.h"
#include "cerebellum/predict/damage.h"

namespace cerebellum {

namespace {

nlohmann::json number(double value) {
    return std::isfinite(value) ? nlohmann::json(value) : nlohmann::json();
}

void add(nlohmann::json& row, const char* name, const std::vector<double>& sums, const std::vector<double>& counts) {
    if (sums.empty()) return;
    const auto estimate = clustered_mean(sums, counts);
    row[name] = estimate.mean;
    row[fmt::format("{}_error", name)] = number(estimate.error);
}

}  // namespace

nlohmann::json damage_rows(std::span<const Measurement> measurements) {
    std::map<std::pair<std::string, std::string>, const Measurement*> full, fast;
    for (const auto& m : measurements) (m.tier == Tier::full ? full : fast)[{m.tensor, m.type}] = &m;
    auto rows = nlohmann::json::array();
    for (const auto& [tensor, damages] : predict_damage(measurements))
        for (const auto& damage : damages) {
            const auto interval = damage_interval(damage);
            nlohmann::json row = {{"tensor", tensor},
                                  {"type", damage.type},
                                  {"tier", tier_name(damage.tier)},
                                  {"kld", damage.kld},
                                  {"kld_error", number(damage.error)},
                                  {"kld_95", {number(interval.lower), number(interval.upper)}}};
            if (const auto m = full.find({tensor, damage.type}); m != full.end()) {
                add(row, "delta_nll", m->second->delta_nll, m->second->counts);
                add(row, "top1_agree", m->second->top1_agree, m->second->counts);
                double tokens = 0.0;
                for (const double count : m->second->counts) tokens += count;
                row["tokens"] = tokens;
                row["windows"] = m->second->counts.size();
            }
            if (const auto m = fast.find({tensor, damage.type}); m != fast.end())
                add(row, "local_energy", m->second->local_energy, m->second->local_counts);
            rows.push_back(std::move(row));
        }
    return rows;
}

}  // namespace cerebellum
