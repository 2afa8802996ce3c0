#include "cerebellum/journal/digest.h"

#include <fmt/format.h>

#include "cerebellum/core/hash.h"

namespace cerebellum {

std::string measurements_sha256(const JournalIdentity& identity, std::span<const Measurement> measurements,
                                std::span<const UnusableFigure> unusable) {
    Sha256 hash;
    for (const auto& [field, value] : identity.fields) hash.update(fmt::format("{}={}\n", field, value));
    const auto add = [&](const std::vector<double>& values) {
        hash.update(fmt::format("{}:", values.size()));
        hash.update(std::as_bytes(std::span(values)));
    };
    for (const auto& m : measurements) {
        hash.update(fmt::format("{} {} {}\n", m.tensor, m.type, tier_name(m.tier)));
        for (const auto* values : {&m.counts, &m.kld, &m.delta_nll, &m.top1_agree, &m.local_energy, &m.local_counts})
            add(*values);
    }
    for (const auto& figure : unusable)
        hash.update(fmt::format("unusable {} {} {}\n", figure.tensor, figure.type, tier_name(figure.tier)));
    return hash.finish();
}

std::string measurements_sha256(const Journal& journal) {
    return measurements_sha256(journal.identity(), journal.measurements(), journal.unusable());
}

}  // namespace cerebellum
