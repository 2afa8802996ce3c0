#include "cerebellum/predict/curve.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cerebellum/core/error.h"
#include "cerebellum/core/quant_type.h"

namespace cerebellum {

namespace {

struct Rows {
    const Measurement* fast = nullptr;
    const Measurement* full = nullptr;
    bool has_energy() const { return fast != nullptr || !full->local_energy.empty(); }
    const Measurement& energy() const { return fast != nullptr ? *fast : *full; }
};

/// a − b on the windows that both have seen. Rows hold the first windows in an order that all share.
Estimate difference(std::span<const double> a, std::span<const double> b, std::span<const double> counts) {
    const auto n = std::min(a.size(), b.size());
    return paired_difference(a.first(n), b.first(n), counts.first(n));
}

/// Whether `more` does more damage than `less` by more than one standard error. This is no claim that anybody reads,
/// and is liberal on purpose: what is taken for noise is averaged.
bool exceeds(const Rows& more, const Rows& less) {
    Estimate excess;
    if (more.full != nullptr && less.full != nullptr)
        excess = difference(more.full->kld, less.full->kld, more.full->counts);
    else if (more.has_energy() && less.has_energy())
        excess = difference(more.energy().local_energy, less.energy().local_energy, more.energy().local_counts);
    else
        return false;
    // With one window nothing is known of the noise; then figures stand as they are.
    return !std::isfinite(excess.error) || excess.mean > excess.error;
}

double relative_error(const Damage& damage) {
    const double relative = damage.error / damage.kld;
    return std::isfinite(relative) ? std::max(relative, 1e-3) : gain_spread;
}

Curve fit_curve(const std::string& tensor, std::span<const Damage> damages, const std::map<std::string, Rows>& rows) {
    Curve curve;
    for (const auto& damage : damages) {
        const auto type = parse_encoding(damage.type);
        if (!type) throw Error(fmt::format("the figures of {} name an unknown type: {}", tensor, damage.type));
        curve.points.push_back({damage, *type, bits_per_weight(type->type), damage.kld, damage_interval(damage)});
    }
    auto& points = curve.points;
    std::ranges::stable_sort(points, [](const CurvePoint& a, const CurvePoint& b) {
        return a.bits != b.bits ? a.bits < b.bits : a.kld < b.kld;
    });
    for (std::size_t i = 0; i < points.size(); ++i)
        for (std::size_t j = 0; j < i && points[i].on_curve; ++j)
            if (points[j].bits == points[i].bits ||
                (points[j].damage.kld < points[i].damage.kld &&
                 exceeds(rows.at(points[i].damage.type), rows.at(points[j].damage.type))))
                points[i].on_curve = false;

    std::vector<double> kld, lower, upper, weights;
    for (const auto& point : points) {
        if (!point.on_curve) continue;
        kld.push_back(point.kld);
        lower.push_back(point.band.lower);
        upper.push_back(point.band.upper);
        weights.push_back(1.0 / std::pow(relative_error(point.damage), 2));
    }
    kld = antitonic_fit(kld, weights);
    // The fit keeps order: a curve between the ends is still between them.
    lower = antitonic_fit(lower, weights);
    upper = antitonic_fit(upper, weights);
    std::size_t next = 0;
    for (auto& point : points) {
        if (!point.on_curve) continue;
        point.kld = kld[next];
        point.band = {lower[next], upper[next]};
        ++next;
    }
    return curve;
}

}  // namespace

std::map<std::string, Curve> fit_curves(std::span<const Measurement> measurements) {
    std::map<std::string, std::map<std::string, Rows>> rows;
    for (const auto& m : measurements)
        (m.tier == Tier::fast ? rows[m.tensor][m.type].fast : rows[m.tensor][m.type].full) = &m;
    std::map<std::string, Curve> curves;
    for (const auto& [tensor, damages] : predict_damage(measurements))
        curves[tensor] = fit_curve(tensor, damages, rows.at(tensor));
    return curves;
}

}  // namespace cerebellum
