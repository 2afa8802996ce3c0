#include "cerebellum/pipeline/aim.h"

#include <cassert>

#include "cerebellum/pipeline/session.h"

namespace cerebellum {

namespace {

double cost_sum(const WindowScore& window, Objective objective) {
    switch (objective) {
        case Objective::kld:
            return window.kld;
        case Objective::nll:
            return window.nll - window.reference_nll;
        case Objective::top1:
            return window.count - window.same_top;
    }
    return 0.0;
}

}  // namespace

std::vector<std::string> measured_domains(const Journal& journal) {
    const auto text = journal.get_artifact("text");
    if (!text) return {};
    return measured_of(deserialize_text_parts(*text).calibration_domains);
}

std::vector<Measurement> weighed_measurements(const Journal& journal, const Aim& aim) {
    auto measurements = journal.measurements();
    if (aim.profile.empty()) return measurements;
    const auto domains = measured_domains(journal);
    return weigh(std::move(measurements), parse_profile(aim.profile, domains), domains);
}

std::vector<MixMeasurement> weighed_mixes(const Journal& journal, const Aim& aim) {
    auto mixes = journal.mixes("measured");
    if (aim.profile.empty()) return mixes;
    const auto domains = measured_domains(journal);
    const auto weights = window_weights(parse_profile(aim.profile, domains), domains);
    for (auto& mix : mixes)
        for (auto* sums : {&mix.counts, &mix.kld, &mix.nll, &mix.reference_nll, &mix.top1_agree}) weigh(*sums, weights);
    return mixes;
}

std::vector<WindowScore> weigh(std::vector<WindowScore> scores, const Aim& aim,
                               const std::vector<std::string>& domains) {
    if (aim.profile.empty()) return scores;
    const auto weights = window_weights(parse_profile(aim.profile, domains), domains);
    std::vector<WindowScore> counted;
    for (std::size_t w = 0; w < scores.size(); ++w) {
        const double n = weights.at(w);
        const auto& s = scores[w];
        if (n > 0.0) counted.push_back({n * s.count, n * s.kld, n * s.nll, n * s.reference_nll, n * s.same_top});
    }
    return counted;
}

Estimate mean_cost(std::span<const WindowScore> scores, Objective objective) {
    std::vector<double> sums, counts;
    for (const auto& window : scores) {
        sums.push_back(cost_sum(window, objective));
        counts.push_back(window.count);
    }
    return clustered_mean(sums, counts);
}

Estimate cost_difference(std::span<const WindowScore> a, std::span<const WindowScore> b, Objective objective) {
    assert(a.size() == b.size());
    std::vector<double> first, second, counts;
    for (std::size_t w = 0; w < a.size(); ++w) {
        first.push_back(cost_sum(a[w], objective));
        second.push_back(cost_sum(b[w], objective));
        counts.push_back(a[w].count);
    }
    return paired_difference(first, second, counts);
}

}  // namespace cerebellum
