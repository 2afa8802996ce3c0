#include "cerebellum/pipeline/mix_scores.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <set>

#include "cerebellum/core/error.h"
#include "cerebellum/evaluate/recipe_replay.h"

namespace cerebellum {

namespace {

/// Every mix on its way holds its live state for every window; bound what is held at once, and what an interrupted run
/// has to do again.
std::size_t mixes_at_once(const Topology& topology, std::size_t n_windows) {
    std::size_t state_bytes = 1;
    for (const auto& layer : topology.layers()) state_bytes = std::max(state_bytes, topology.live_bytes(layer.begin));
    constexpr std::size_t most_bytes = std::size_t{256} << 20, most = 24;
    return std::clamp<std::size_t>(most_bytes / (state_bytes * std::max<std::size_t>(1, n_windows)), 1, most);
}

TokenWindows windows_of(Session& session, std::string_view part) {
    if (part == "selection") return session.text().selection;
    if (part == "test") return session.text().test;
    return session.measured_windows();
}

MixMeasurement to_measurement(std::span<const WindowScore> scores) {
    MixMeasurement mix;
    for (const auto& score : scores) {
        if (!std::isfinite(score.kld)) throw Error("the damage of a whole mix is not a finite number on this text");
        mix.counts.push_back(score.count);
        mix.kld.push_back(score.kld);
        mix.nll.push_back(score.nll);
        mix.reference_nll.push_back(score.reference_nll);
        mix.top1_agree.push_back(score.same_top);
    }
    return mix;
}

}  // namespace

TypeMap changed_types(const GgufFile& source, const TypeMap& types) {
    TypeMap changed;
    for (const auto& [name, type] : types)
        if (const auto* tensor = source.find(name); tensor == nullptr || tensor->type != type.type)
            changed[name] = type;
    return changed;
}

std::vector<MixMeasurement> measure_mixes(Session& session, std::span<const TypeMap> mixes, std::string_view part,
                                          std::string_view kind, Progress& progress) {
    auto& journal = session.journal();
    std::vector<TypeMap> wanted, missing;
    std::set<TypeMap> seen;
    for (const auto& mix : mixes) {
        wanted.push_back(changed_types(session.source(), mix));
        if (!journal.find_mix(part, wanted.back()) && seen.insert(wanted.back()).second)
            missing.push_back(wanted.back());
    }
    if (!missing.empty()) {
        const auto part_windows = windows_of(session, part);
        const auto at_once = session.replays() ? mixes_at_once(session.engine().topology(), part_windows.size()) : 1;
        const auto windows = session.replays() ? session.prepare(part_windows) : std::vector<Window>();
        for (std::size_t begin = 0; begin < missing.size(); begin += at_once) {
            const auto group = std::span(missing).subspan(begin, std::min(at_once, missing.size() - begin));
            const auto start = std::chrono::steady_clock::now();
            const auto scores = session.replays()
                                    ? replay_recipes(session.engine(), windows, group, session.quantizer(), progress)
                                    : score_through_files(session.file_trials(), group, part_windows, progress);
            const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
            for (std::size_t i = 0; i < group.size(); ++i) {
                auto mix = to_measurement(scores[i]);
                mix.types = group[i];
                mix.part = part;
                mix.kind = kind;
                mix.wall_s = seconds.count() / static_cast<double>(group.size());
                journal.record(mix);
            }
        }
    }
    std::vector<MixMeasurement> result;
    for (const auto& types : wanted) result.push_back(journal.find_mix(part, types).value());
    return result;
}

std::vector<WindowScore> window_scores(const MixMeasurement& mix) {
    std::vector<WindowScore> scores;
    for (std::size_t w = 0; w < mix.counts.size(); ++w)
        scores.push_back({mix.counts[w], mix.kld[w], mix.nll[w], mix.reference_nll[w], mix.top1_agree[w]});
    return scores;
}

}  // namespace cerebellum
