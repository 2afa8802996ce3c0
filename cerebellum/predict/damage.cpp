#include "cerebellum/predict/damage.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cerebellum/core/encoding.h"
#include "cerebellum/core/error.h"

namespace cerebellum {

namespace {

struct Anchor {
    double log_energy = 0.0;
    double log_gain = 0.0;
    Estimate relative;  // error of the gain, as a share of it
    double distance = 0.0;
};

/// x/|y| where that is a number, else 0.
double relative(double error, double value) {
    const double ratio = std::fabs(error / value);
    return std::isfinite(ratio) ? ratio : 0.0;
}

/// More energy does more damage: anchors that noise has put in the other order share their mean, weighted by precision.
void make_monotone(std::vector<Anchor>& anchors) {
    std::ranges::sort(anchors, std::greater<>{}, &Anchor::log_energy);
    std::vector<double> log_kld, weights;
    for (const auto& anchor : anchors) {
        log_kld.push_back(anchor.log_energy + anchor.log_gain);
        weights.push_back(1.0 / std::pow(std::max(anchor.relative.error, 1e-3), 2));
    }
    const auto fit = antitonic_fit(log_kld, weights);
    for (std::size_t i = 0; i < anchors.size(); ++i) anchors[i].log_gain = fit[i] - anchors[i].log_energy;
    std::ranges::reverse(anchors);
}

/// What is behind the type in a name as type_name writes it.
Rounding rounding_of(const std::string& type) {
    const auto encoding = parse_encoding(type);
    return encoding ? encoding->rounding : Rounding::ggml;
}

Anchor gain_at(const std::vector<Anchor>& anchors, double log_energy) {
    const auto above = std::ranges::find_if(anchors, [&](const Anchor& a) { return a.log_energy >= log_energy; });
    if (above == anchors.begin() || above == anchors.end()) {
        Anchor nearest = above == anchors.end() ? anchors.back() : anchors.front();
        nearest.distance = std::fabs(nearest.log_energy - log_energy);
        return nearest;
    }
    const auto& lower = *(above - 1);
    const double t = (log_energy - lower.log_energy) / (above->log_energy - lower.log_energy);
    return {log_energy, lower.log_gain + t * (above->log_gain - lower.log_gain),
            above->relative.error > lower.relative.error ? above->relative : lower.relative, 0.0};
}

/// A sum of independent errors, their degrees of freedom combined (Welch, 1947; Satterthwaite, 1946).
Estimate combine(std::span<const Estimate> parts) {
    double variance = 0.0, spread = 0.0;
    for (const auto& part : parts) {
        const double square = part.error * part.error;
        variance += square;
        if (part.dof > 0.0 && std::isfinite(part.dof)) spread += square * square / part.dof;
    }
    return {0.0, std::sqrt(variance),
            spread > 0.0 ? variance * variance / spread : std::numeric_limits<double>::infinity()};
}

/// A full figure whose row saw n of the n_all windows of the local energy: ratio estimation by double sampling
/// (Cochran, Sampling Techniques, 3rd ed., §12.9). What the energy explains has the error of n_all windows, the rest
/// that of n.
double double_sampling_error(const Estimate& kld, const Estimate& gain, const Estimate& energy, double n,
                             double n_all) {
    const double rest = std::pow(gain.error * energy.mean, 2);
    const double explained = std::max(0.0, kld.error * kld.error - rest);
    return std::sqrt(rest + explained * n / n_all);
}

struct Known {
    std::map<std::string, Estimate> energy;
    std::map<std::string, Estimate> kld;
    std::map<std::string, Estimate> gain;  // KLD per unit of local energy, on the windows that both are known for
};

std::vector<Damage> damages_of(const std::string& name, const Known& known) {
    std::vector<Damage> damages;
    // Errors of another rounding point elsewhere, so each rounding has gains of its own.
    std::map<Rounding, std::vector<Anchor>> anchors_by_rounding;
    for (const auto& [type, kld] : known.kld) {
        const auto energy = known.energy.find(type);
        const auto gain = known.gain.find(type);
        if (energy == known.energy.end() || gain == known.gain.end() || energy->second.mean <= 0.0 ||
            gain->second.mean <= 0.0) {
            damages.push_back({type, kld.mean, kld.error, Tier::full, kld.dof});
            continue;
        }
        damages.push_back({type, gain->second.mean * energy->second.mean,
                           double_sampling_error(kld, gain->second, energy->second, kld.dof + 1.0,
                                                 std::max(kld.dof, energy->second.dof) + 1.0),
                           Tier::full, kld.dof});
        anchors_by_rounding[rounding_of(type)].push_back(
            {std::log(energy->second.mean),
             std::log(gain->second.mean),
             {0.0, relative(gain->second.error, gain->second.mean), gain->second.dof}});
    }
    for (auto& [rounding, anchors] : anchors_by_rounding) make_monotone(anchors);
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
        const Estimate spread =
            combine(std::vector<Estimate>{gain.relative,
                                          {0.0, relative(energy.error, energy.mean), energy.dof},
                                          {0.0, std::hypot(gain_spread, gain_spread_per_distance * gain.distance)}});
        damages.push_back({type, kld, kld * spread.error, Tier::fast, spread.dof});
    }
    return damages;
}

}  // namespace

Interval damage_interval(const Damage& damage, double level) {
    if (damage.tier == Tier::fast && damage.kld > 0.0) {
        const auto log_kld = confidence_interval({std::log(damage.kld), damage.error / damage.kld, damage.dof}, level);
        return {std::exp(log_kld.lower), std::exp(log_kld.upper)};
    }
    const auto interval = confidence_interval({damage.kld, damage.error, damage.dof}, level);
    return {std::max(0.0, interval.lower), interval.upper};
}

std::map<std::string, std::vector<Damage>> predict_damage(std::span<const Measurement> measurements) {
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
    for (const auto& [name, known] : tensors) result[name] = damages_of(name, known);
    return result;
}

}  // namespace cerebellum
