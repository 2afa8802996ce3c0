#include "cerebellum/pipeline/aim.h"

#include "cerebellum/pipeline/session.h"

namespace cerebellum {

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

}  // namespace cerebellum
