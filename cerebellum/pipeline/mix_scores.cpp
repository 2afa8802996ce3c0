#include "cerebellum/pipeline/mix_scores.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <set>

#include "cerebellum/core/figure_error.h"
#include "cerebellum/evaluate/recipe_replay.h"

namespace cerebellum {

namespace {

/// Every mix on its way holds its live state for every window; bound what is held at once, and what an interrupted run
/// has to do again.
std::size_t mixes_at_once(const Topology& topology, std::size_t n_windows, std::size_t n_all_windows) {
    std::size_t state_bytes = 1;
    for (const auto& layer : topology.layers()) state_bytes = std::max(state_bytes, topology.live_bytes(layer.begin));
    constexpr std::size_t most_bytes = std::size_t{256} << 20, most_on_all = 24;
    return std::clamp<std::size_t>(most_bytes / (state_bytes * n_windows), 1, most_on_all * n_all_windows / n_windows);
}

/// Of what belongs to the calibration part's windows those that are not measured on: one in each group goes to
/// `search`, the others to `confirm`.
template <typename Value>
std::vector<Value> unmeasured_of(const std::vector<Value>& calibration, TextPart part) {
    std::vector<Value> values;
    for (std::size_t i = 0; i < calibration.size(); ++i) {
        const auto place = i % calibration_factor;
        if (place != 0 && (place == calibration_factor / 2) == (part == TextPart::search))
            values.push_back(calibration[i]);
    }
    return values;
}

MixMeasurement to_measurement(std::span<const WindowScore> scores) {
    MixMeasurement mix;
    for (const auto& score : scores) {
        mix.counts.push_back(score.count);
        mix.kld.push_back(score.kld);
        mix.nll.push_back(score.nll);
        mix.reference_nll.push_back(score.reference_nll);
        mix.top1_agree.push_back(score.same_top);
    }
    return mix;
}

bool is_number(std::span<const WindowScore> scores) {
    return std::ranges::all_of(scores, [](const WindowScore& score) {
        return score.count > 0.0 && std::isfinite(score.kld) && std::isfinite(score.nll) &&
               std::isfinite(score.reference_nll);
    });
}

using Scores = std::vector<std::vector<WindowScore>>;

Scores score_group(Session& session, std::span<const Window> windows, const TokenWindows& tokens,
                   std::span<const TypeMap> group, Progress& progress) {
    return session.replays() ? replay_recipes(session.engine(), windows, group, session.quantizer(), progress)
                             : score_through_files(session.file_trials(), group, tokens, progress);
}

/// One mix that did not come to numbers with others, by itself, a window at a time. Empty where it does not either.
std::vector<WindowScore> score_alone(Session& session, std::span<const Window> windows, const TokenWindows& tokens,
                                     const TypeMap& mix, Progress& progress) {
    std::vector<WindowScore> scores;
    std::string why = "its damage is not a finite number on this text";
    try {
        for (std::size_t w = 0; w < tokens.size(); ++w) {
            const auto one = windows.empty() ? windows : windows.subspan(w, 1);
            scores.push_back(score_group(session, one, {tokens[w]}, std::span(&mix, 1), progress).front().front());
        }
        if (is_number(scores)) return scores;
    } catch (const FigureError& error) {
        why = error.what();
    }
    progress.warn(fmt::format("a mix of {} changed tensors is left out: {}", mix.size(), why));
    return {};
}

/// Of every mix, or nothing where a mix has none.
Scores usable_scores(Session& session, std::span<const Window> windows, const TokenWindows& tokens,
                     std::span<const TypeMap> group, Progress& progress) {
    Scores scores(group.size());
    try {
        scores = score_group(session, windows, tokens, group, progress);
    } catch (const FigureError&) {
        // One of them is to blame, which is found out below.
    }
    for (std::size_t i = 0; i < group.size(); ++i)
        if (scores[i].empty() || !is_number(scores[i]))
            scores[i] = score_alone(session, windows, tokens, group[i], progress);
    return scores;
}

MixMeasurement unusable_mix(const TypeMap& types, std::string_view part, std::string_view kind, std::size_t windows) {
    MixMeasurement mix;
    mix.types = types;
    mix.part = part;
    mix.kind = kind;
    mix.counts.assign(windows, 1.0);
    mix.kld = mix.nll = std::vector<double>(windows, unusable_kld);
    mix.reference_nll = mix.top1_agree = std::vector<double>(windows, 0.0);
    return mix;
}

/// Windows of a part of the text that mixes are to be measured on: all, or its first ones.
struct WantedPart {
    TextPart part;
    TokenWindows windows;
};

/// What is missing of a mix: by part, how many of its windows the journal has.
using KnownWindows = std::vector<std::size_t>;

/// Adds what was scored on the windows that were missing, part after part, to the journal.
void record_scores(Session& session, const TypeMap& types, std::span<const WantedPart> wanted,
                   const KnownWindows& known, std::span<const WindowScore> scores, std::string_view kind,
                   double wall_s) {
    auto& journal = session.journal();
    journal.in_one_step([&] {
        auto left = scores;
        for (std::size_t p = 0; p < wanted.size(); ++p) {
            if (known[p] >= wanted[p].windows.size()) continue;
            const auto n = wanted[p].windows.size() - known[p];
            auto mix = to_measurement(left.first(n));
            left = left.subspan(n);
            mix.types = types;
            mix.part = part_name(wanted[p].part);
            mix.kind = kind;
            mix.wall_s = wall_s * static_cast<double>(n) / static_cast<double>(scores.size());
            if (auto earlier = journal.find_mix(mix.part, mix.types)) {
                extend(*earlier, mix);
                mix = std::move(*earlier);
            }
            journal.record(mix);
        }
    });
}

/// Measures mixes of which the same windows are missing.
void measure_missing(Session& session, std::span<const TypeMap> types, std::span<const WantedPart> wanted,
                     const KnownWindows& known, std::string_view kind, Progress& progress) {
    TokenWindows tokens;
    std::size_t n_all_windows = 0;
    for (std::size_t p = 0; p < wanted.size(); ++p) {
        const auto& windows = wanted[p].windows;
        tokens.insert(tokens.end(), windows.begin() + static_cast<std::ptrdiff_t>(std::min(known[p], windows.size())),
                      windows.end());
        n_all_windows += windows_of(session, wanted[p].part).size();
    }
    const auto at_once =
        session.replays() ? mixes_at_once(session.engine().topology(), tokens.size(), n_all_windows) : 1;
    const auto windows = session.replays() ? session.prepare(tokens) : std::vector<Window>();
    for (std::size_t begin = 0; begin < types.size(); begin += at_once) {
        const auto group = types.subspan(begin, std::min(at_once, types.size() - begin));
        const auto start = std::chrono::steady_clock::now();
        const auto scores = usable_scores(session, windows, tokens, group, progress);
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        for (std::size_t i = 0; i < group.size(); ++i) {
            if (scores[i].empty()) continue;
            record_scores(session, group[i], wanted, known, scores[i], kind,
                          seconds.count() / static_cast<double>(group.size()));
        }
    }
}

std::vector<std::vector<MixMeasurement>> measure_parts(Session& session, std::span<const TypeMap> mixes,
                                                       std::span<const WantedPart> wanted, std::string_view kind,
                                                       Progress& progress) {
    const auto& journal = session.journal();
    std::vector<TypeMap> changed;
    std::map<KnownWindows, std::vector<TypeMap>> missing;
    std::set<TypeMap> seen;
    for (const auto& mix : mixes) {
        const auto& types = changed.emplace_back(changed_types(session.source(), mix));
        if (!seen.insert(types).second) continue;
        KnownWindows known;
        bool complete = true;
        for (const auto& [part, windows] : wanted) {
            const auto row = journal.find_mix(part_name(part), types);
            known.push_back(std::min(row ? row->counts.size() : 0, windows.size()));
            complete = complete && known.back() == windows.size();
        }
        if (!complete) missing[known].push_back(types);
    }
    for (const auto& [known, types] : missing) measure_missing(session, types, wanted, known, kind, progress);
    std::vector<std::vector<MixMeasurement>> result;
    for (const auto& [part, windows] : wanted) {
        auto& rows = result.emplace_back();
        for (const auto& types : changed) {
            const auto row = journal.find_mix(part_name(part), types);
            const bool measured = row && row->counts.size() >= windows.size();
            auto& mix = rows.emplace_back(measured ? *row : unusable_mix(types, part_name(part), kind, windows.size()));
            for (auto* sums : {&mix.counts, &mix.kld, &mix.nll, &mix.reference_nll, &mix.top1_agree})
                sums->resize(windows.size());
        }
    }
    return result;
}

std::vector<std::vector<WindowScore>> scores_of(Session& session, std::span<const MixMeasurement> mixes, TextPart part,
                                                const Aim& aim) {
    auto domains = domains_of(session, part);
    std::vector<std::vector<WindowScore>> scores;
    for (const auto& mix : mixes) {
        if (!domains.empty()) domains.resize(mix.counts.size());
        scores.push_back(weigh(window_scores(mix), aim, domains));
    }
    return scores;
}

}  // namespace

bool is_usable(std::span<const WindowScore> scores) {
    return std::ranges::none_of(scores,
                                [](const WindowScore& score) { return score.kld >= unusable_kld * score.count; });
}

bool is_usable(const MixMeasurement& mix) {
    return is_usable(window_scores(mix));
}

TypeMap changed_types(const GgufFile& source, const TypeMap& types) {
    TypeMap changed;
    for (const auto& [name, type] : types)
        if (const auto* tensor = source.find(name); tensor == nullptr || tensor->type != type.type)
            changed[name] = type;
    return changed;
}

std::string_view part_name(TextPart part) {
    switch (part) {
        case TextPart::measured:
            return "measured";
        case TextPart::search:
            return "search";
        case TextPart::confirm:
            return "confirm";
        case TextPart::selection:
            return "selection";
        case TextPart::test:
            return "test";
    }
    return "";
}

TokenWindows windows_of(Session& session, TextPart part) {
    const auto& text = session.text();
    switch (part) {
        case TextPart::measured:
            return session.measured_windows();
        case TextPart::selection:
            return text.selection;
        case TextPart::test:
            return text.test;
        case TextPart::search:
        case TextPart::confirm:
            return unmeasured_of(text.calibration, part);
    }
    return {};
}

std::vector<std::string> domains_of(Session& session, TextPart part) {
    const auto& text = session.text();
    switch (part) {
        case TextPart::measured:
            return measured_of(text.calibration_domains);
        case TextPart::selection:
            return text.selection_domains;
        case TextPart::test:
            return text.test_domains;
        case TextPart::search:
        case TextPart::confirm:
            return unmeasured_of(text.calibration_domains, part);
    }
    return {};
}

std::vector<MixMeasurement> measure_mixes(Session& session, std::span<const TypeMap> mixes, TextPart part,
                                          std::string_view kind, Progress& progress, std::size_t n_windows) {
    WantedPart wanted[] = {{part, windows_of(session, part)}};
    if (n_windows < wanted[0].windows.size()) wanted[0].windows.resize(n_windows);
    return std::move(measure_parts(session, mixes, wanted, kind, progress).front());
}

std::vector<std::vector<MixMeasurement>> measure_mixes(Session& session, std::span<const TypeMap> mixes,
                                                       std::span<const TextPart> parts, std::string_view kind,
                                                       Progress& progress) {
    std::vector<WantedPart> wanted;
    for (const auto part : parts) wanted.push_back({part, windows_of(session, part)});
    return measure_parts(session, mixes, wanted, kind, progress);
}

std::vector<std::vector<WindowScore>> measure_scores(Session& session, std::span<const TypeMap> mixes, TextPart part,
                                                     std::string_view kind, const Aim& aim, Progress& progress,
                                                     std::size_t n_windows) {
    return scores_of(session, measure_mixes(session, mixes, part, kind, progress, n_windows), part, aim);
}

std::vector<std::vector<std::vector<WindowScore>>> measure_scores(Session& session, std::span<const TypeMap> mixes,
                                                                  std::span<const TextPart> parts,
                                                                  std::string_view kind, const Aim& aim,
                                                                  Progress& progress) {
    const auto measured = measure_mixes(session, mixes, parts, kind, progress);
    std::vector<std::vector<std::vector<WindowScore>>> scores;
    for (std::size_t p = 0; p < parts.size(); ++p) scores.push_back(scores_of(session, measured[p], parts[p], aim));
    return scores;
}

std::vector<WindowScore> window_scores(const MixMeasurement& mix) {
    std::vector<WindowScore> scores;
    for (std::size_t w = 0; w < mix.counts.size(); ++w)
        scores.push_back({mix.counts[w], mix.kld[w], mix.nll[w], mix.reference_nll[w], mix.top1_agree[w]});
    return scores;
}

}  // namespace cerebellum
