#include "cerebellum/pipeline/whole_prediction.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cerebellum/pipeline/allocation.h"
#include "cerebellum/pipeline/mix_scores.h"

namespace cerebellum {

namespace {

std::uint64_t smallest_bytes(const AllocationProblem& problem) {
    auto bytes = problem.fixed_bytes;
    for (const auto& tensor : problem.tensors) bytes += std::ranges::min(tensor.choices, {}, &TypeChoice::bytes).bytes;
    return bytes;
}

/// How often the windows of the selection text count.
std::vector<double> selection_weights(const Journal& journal, const Aim& aim) {
    const auto text = journal.get_artifact("text");
    if (aim.profile.empty() || !text) return {};
    const auto domains = deserialize_text_parts(*text).selection_domains;
    return window_weights(parse_profile(aim.profile, domains), domains);
}

void weigh_all(MixMeasurement& mix, std::span<const double> weights) {
    if (weights.empty()) return;
    for (auto* sums : {&mix.counts, &mix.kld, &mix.nll, &mix.reference_nll, &mix.top1_agree}) weigh(*sums, weights);
}

}  // namespace

std::vector<MeasuredWhole> measured_wholes(const AllocationProblem& problem, const Journal& journal, const Aim& aim) {
    std::vector<MeasuredWhole> wholes;
    const auto weights = selection_weights(journal, aim);
    const auto add = [&](const MixMeasurement& mix) {
        if (const auto sum = predicted_kld(problem, mix.types))
            wholes.push_back({mix.kind, mix.types, *sum, clustered_mean(mix.kld, mix.counts)});
    };
    for (auto& mix : weighed_mixes(journal, aim)) {
        if (mix.kind != "recipe") continue;
        if (auto selection = journal.find_mix("selection", mix.types)) {
            weigh_all(*selection, weights);
            extend(mix, *selection);
        }
        add(mix);
    }
    for (auto& mix : journal.mixes("selection")) {
        if (mix.kind != "contender") continue;
        weigh_all(mix, weights);
        add(mix);
    }
    return wholes;
}

Calibration make_calibration(const AllocationProblem& problem, const Journal& journal, const Aim& aim) {
    std::vector<WholePoint> points;
    for (const auto& whole : measured_wholes(problem, journal, aim))
        if (whole.kind == "recipe") points.push_back({whole.sum, whole.whole});
    return Calibration(points);
}

std::optional<WholePrediction> predict_whole(const AllocationProblem& problem, const Calibration& calibration,
                                             const TypeMap& types) {
    const auto sum = predicted_kld(problem, types);
    if (!sum) return std::nullopt;
    return WholePrediction{*sum, calibration.predict(*sum)};
}

void note_prediction(const AllocationProblem& problem, const Calibration& calibration, Recipe& recipe) {
    const auto predicted = predict_whole(problem, calibration, recipe.types);
    recipe.predicted_kld = predicted ? predicted->sum : std::nan("");
    for (const auto* key : {"calibrated_kld", "calibrated_kld_error"}) recipe.provenance.erase(key);
    if (!predicted || calibration.empty()) return;
    recipe.provenance["calibrated_kld"] = fmt::format("{:.6g}", predicted->calibrated.mean);
    recipe.provenance["calibrated_kld_error"] = fmt::format("{:.3g}", predicted->calibrated.error);
}

std::vector<MixMeasurement> measure_recipes(Session& session, const AllocationProblem& problem,
                                            std::span<const std::uint64_t> budgets, Progress& progress) {
    std::vector<TypeMap> recipes;
    for (const auto budget : budgets) {
        if (budget < smallest_bytes(problem)) continue;
        recipes.push_back(allocate(problem, budget).types);
    }
    constexpr TextPart parts[] = {TextPart::measured, TextPart::selection};
    auto rows = measure_mixes(session, recipes, parts, "recipe", progress);
    for (std::size_t i = 0; i < recipes.size(); ++i) extend(rows[0][i], rows[1][i]);
    std::erase_if(rows[0], [](const MixMeasurement& mix) { return !is_usable(mix); });
    return std::move(rows[0]);
}

std::vector<std::uint64_t> neighbouring_budgets(std::uint64_t budget_bytes, Effort effort) {
    std::vector<double> factors = {0.92, 1.08};
    if (effort == Effort::quick) factors = {1.04};
    if (effort == Effort::thorough) factors = {0.84, 0.94, 1.06, 1.18};
    std::vector<std::uint64_t> budgets;
    for (const double factor : factors)
        budgets.push_back(static_cast<std::uint64_t>(factor * static_cast<double>(budget_bytes)));
    return budgets;
}

std::vector<std::uint64_t> spread_budgets(const AllocationProblem& problem, std::uint64_t n_weights) {
    const double least = 1.03 * static_cast<double>(smallest_bytes(problem));
    const double most = std::max(least, 6.5 / 8.0 * static_cast<double>(n_weights));
    constexpr int n = 7;
    std::vector<std::uint64_t> budgets;
    for (int i = 0; i < n; ++i)
        budgets.push_back(static_cast<std::uint64_t>(least * std::pow(most / least, static_cast<double>(i) / (n - 1))));
    return budgets;
}

}  // namespace cerebellum
