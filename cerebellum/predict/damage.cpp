#include "cerebellum/predict/damage.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cerebellum/core/encoding.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/stats.h"

namespace cerebellum {

namespace {

struct Anchor {
    double log_energy = 0.0;
    double log_gain = 0.0;
    double relative_error = 0.0;
};

/// x/|y| where that is a number, else 0.
double relative(double error, double value) {
    const double ratio = std::fabs(error / value);
    return std::isfinite(ratio) ? ratio : 0.0;
}

/// What is behind the type in a name as type_name writes it.
std::string rounding_of(const std::string& type) {
    const auto encoding = parse_encoding(type);
    return std::string(rounding_name(encoding ? encoding->rounding : Rounding::ggml));
}

Anchor gain_at(const std::vector<Anchor>& anchors, double log_energy) {
    const auto above = std::ranges::find_if(anchors, [&](const Anchor& a) { return a.log_energy >= log_energy; });
    if (above == anchors.begin()) return anchors.front();
    if (above == anchors.end()) return anchors.back();
    const auto& lower = *(above - 1);
    const double t = (log_energy - lower.log_energy) / (above->log_energy - lower.log_energy);
    return {log_energy, lower.log_gain + t * (above->log_gain - lower.log_gain),
            std::max(lower.relative_error, above->relative_error)};
}

}  // namespace

std::map<std::string, std::vector<Damage>> predict_damage(std::span<const Measurement> measurements) {
    struct Known {
        std::map<std::string, Estimate> energy;
        std::map<std::string, Estimate> kld;
        std::map<std::string, Estimate> gain;  // KLD per unit of local energy, on the windows that both are known for
    };
    std::map<std::string, Known> tensors;
    for (const auto& m : measurements) {
        auto& known = tensors[m.tensor];
        if (m.tier == Tier::fast) {
            known.energy[m.type] = clustered_mean(m.local_energy, m.local_counts);
            continue;
        }
        known.kld[m.type] = clustered_mean(m.kld, m.counts);
        if (!m.local_energy.empty()) known.gain[m.type] = clustered_mean(m.kld, m.local_energy);
    }
    std::map<std::string, std::vector<Damage>> result;
    for (const auto& [name, known] : tensors) {
        // Errors of another rounding point elsewhere, so each rounding has gains of its own.
        std::map<std::string, std::vector<Anchor>> anchors_by_rounding;
        auto& damages = result[name];
        for (const auto& [type, kld] : known.kld) {
            const auto energy = known.energy.find(type);
            const auto gain = known.gain.find(type);
            if (energy == known.energy.end() || gain == known.gain.end() || energy->second.mean <= 0.0 ||
                gain->second.mean <= 0.0) {
                damages.push_back({type, kld.mean, kld.error, Tier::full});
                continue;
            }
            // Where the anchor saw fewer windows than the fast tier, the ratio estimator carries it over to all of
            // them.
            damages.push_back({type, gain->second.mean * energy->second.mean, kld.error, Tier::full});
            anchors_by_rounding[rounding_of(type)].push_back({std::log(energy->second.mean),
                                                              std::log(gain->second.mean),
                                                              relative(gain->second.error, gain->second.mean)});
        }
        for (auto& [rounding, anchors] : anchors_by_rounding) std::ranges::sort(anchors, {}, &Anchor::log_energy);
        for (const auto& [type, energy] : known.energy) {
            if (known.kld.contains(type)) continue;
            if (energy.mean <= 0.0) {
                damages.push_back({type, 0.0, 0.0, Tier::fast});
                continue;
            }
            const auto& anchors = anchors_by_rounding[rounding_of(type)];
            if (anchors.empty())
                throw Error(fmt::format(
                    "{} has fast figures but no full one that they could be scaled by; run 'ablate' to its end", name));
            const auto gain = gain_at(anchors, std::log(energy.mean));
            const double kld = energy.mean * std::exp(gain.log_gain);
            const double spread = std::hypot(gain.relative_error, relative(energy.error, energy.mean), gain_spread);
            damages.push_back({type, kld, kld * spread, Tier::fast});
        }
    }
    return result;
}

}  // namespace cerebellum
