#include "cerebellum/pipeline/timed_search.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

#include "cerebellum/core/error.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/pipeline/mix_scores.h"

namespace cerebellum {

namespace {

constexpr std::size_t least_explore_windows = 2, least_confirm_windows = 3;

class Clock {
  public:
    double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

  private:
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

std::string describe_changes(const SearchStep& step) {
    std::vector<std::string> changes;
    for (const auto& [tensor, type] : step.to)
        changes.push_back(fmt::format("{} {} > {}", tensor, type_name(step.from.at(tensor)), type_name(type)));
    return fmt::format("{}", fmt::join(changes, ", "));
}

}  // namespace

void check_search_text(Session& session) {
    const auto explore = windows_of(session, TextPart::search).size();
    const auto confirm = windows_of(session, TextPart::confirm).size();
    if (explore < least_explore_windows || confirm < least_confirm_windows)
        throw UsageError(
            fmt::format("--search has {} windows to explore and {} to confirm on, and needs {} and {}; raise --tokens "
                        "to at least {}, or give a longer --text",
                        explore, confirm, least_explore_windows, least_confirm_windows, 2 * session.context()));
}

TimedSearch search_for(Session& session, const StartingRecipe& start, double seconds, const Aim& aim,
                       Progress& progress) {
    TimedSearch search;
    search.explore_windows = windows_of(session, TextPart::search).size();
    search.confirm_windows = windows_of(session, TextPart::confirm).size();
    const Clock clock;
    std::map<TextPart, std::pair<double, double>> taken;  // seconds, mixes
    const RecipeScorer scorer = [&](std::span<const TypeMap> recipes,
                                    SearchWindows windows) -> std::optional<std::vector<std::vector<WindowScore>>> {
        const auto part = windows == SearchWindows::explore ? TextPart::search : TextPart::confirm;
        const auto missing = static_cast<double>(std::ranges::count_if(recipes, [&](const TypeMap& recipe) {
            return !session.journal().find_mix(part_name(part), changed_types(session.source(), recipe));
        }));
        auto& [spent, mixes] = taken[part];
        const double begin = clock.seconds();
        const double expected = mixes > 0.0 ? missing * spent / mixes : 0.0;
        if (missing > 0.0 && (begin >= seconds || begin + expected > seconds)) return std::nullopt;
        auto scores = measure_scores(session, recipes, part, "search", aim, progress);
        if (missing > 0.0) {
            spent += clock.seconds() - begin;
            mixes += missing;
        }
        return scores;
    };
    search.result = search_recipe(start, scorer, progress);
    search.seconds = clock.seconds();
    progress.info(fmt::format("search: {} changes measured, {} of {} tests accepted; {}", search.result.explored,
                              search.result.accepted(), search.result.steps.size(),
                              search.result.exhausted ? "nothing is left to try" : "the time is up"));
    return search;
}

std::map<std::string, std::string> search_provenance(const SearchResult& result) {
    std::map<std::string, std::string> provenance;
    provenance["search"] =
        fmt::format("{} changes measured, {} of {} tests accepted, {}", result.explored, result.accepted(),
                    result.steps.size(), result.exhausted ? "to the end" : "until the time was up");
    for (std::size_t i = 0; i < result.steps.size(); ++i) {
        const auto& step = result.steps[i];
        if (step.accepted)
            provenance[fmt::format("search.test{:03}", i + 1)] =
                fmt::format("{}: KLD lower by {:.6g} ± {:.3g}, p {:.3g} of {:.3g}", describe_changes(step),
                            step.gain.mean, step.gain.error, step.p, step.level);
    }
    return provenance;
}

nlohmann::json to_json(const TimedSearch& search) {
    auto steps = nlohmann::json::array();
    for (const auto& step : search.result.steps) {
        nlohmann::json changes;
        for (const auto& [tensor, type] : step.to)
            changes[tensor] = {{"from", type_name(step.from.at(tensor))}, {"to", type_name(type)}};
        steps.push_back({{"changes", std::move(changes)},
                         {"file_bytes", step.file_bytes},
                         {"expected_gain", step.expected_gain},
                         {"kld_gain", step.gain},
                         {"p", step.p},
                         {"level", step.level},
                         {"accepted", step.accepted}});
    }
    return {{"seconds", search.seconds},
            {"explored", search.result.explored},
            {"exhausted", search.result.exhausted},
            {"explore_windows", search.explore_windows},
            {"confirm_windows", search.confirm_windows},
            {"steps", std::move(steps)},
            {"gain", search.gain}};
}

}  // namespace cerebellum
