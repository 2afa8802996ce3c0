#include <cmath>
#include <nlohmann/json.hpp>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/pipeline/doctor.h"
#include "cerebellum/pipeline/quantize.h"
#include "cerebellum/version.h"

namespace cerebellum {

namespace {

/// What was not measured of a mix is null.
nlohmann::json to_json(const Contender& contender, std::uint64_t n_weights) {
    nlohmann::json row = {{"name", contender.name},
                          {"kind", kind_name(contender.kind)},
                          {"bytes", contender.bytes},
                          {"bpw", 8.0 * static_cast<double>(contender.bytes) / static_cast<double>(n_weights)},
                          {"fits", contender.fits},
                          {"measured_by", measured_by(contender)}};
    if (contender.predicted) {
        row["predicted_kld"] = contender.predicted->kld;
        if (contender.predicted->at_least) row["predicted_at_least"] = true;
    }
    if (contender.replayed()) row["selection_kld"] = summarize(contender.selection).kld;
    if (contender.predicted_only()) {
        for (const auto* key : {"kld", "perplexity", "delta_nll", "top1_agree", "tokens"}) row[key] = nullptr;
        if (contender.predicted) row["kld"] = row["predicted_kld"];
        return row;
    }
    const auto figures = summarize(contender.test);
    row["kld"] = figures.kld;
    row["perplexity"] = {{"mean", figures.perplexity}, {"error", figures.perplexity_error}};
    row["delta_nll"] = figures.delta_nll;
    row["top1_agree"] = figures.top1_agree;
    row["tokens"] = figures.tokens;
    return row;
}

}  // namespace

nlohmann::json to_json(const QuantizeResult& result) {
    nlohmann::json rows = nlohmann::json::array();
    for (const auto& contender : result.contenders) rows.push_back(to_json(contender, result.n_weights));
    nlohmann::json calibrated;
    if (result.prediction && std::isfinite(result.prediction->calibrated.error))
        calibrated = result.prediction->calibrated;
    auto rounds = nlohmann::json::array();
    for (const auto& round : result.rounds)
        rounds.push_back(
            {{"tried", round.tried}, {"changed", round.changed}, {"kld_gain", round.gain}, {"taken", round.taken}});
    nlohmann::json choice = {{"rule", "least damage on the selection text, of all that fit and are allowed"},
                             {"compare", result.compare_all ? "all" : "auto"}};
    if (!result.choice.next_best.empty()) {
        choice["next_best"] = result.choice.next_best;
        choice["difference"] = result.choice.difference;
    }
    nlohmann::json scaling;
    if (result.scaling) {
        scaling = to_json(result.scaling->search);
        scaling.erase("scalings");  // they stand in the recipe
        scaling["scaled"] = result.scaling->search.scalings.size();
        scaling["kld_gain"] = result.scaling->gain;
        scaling["delivered"] = !result.recipe.scaling.empty();
    }
    nlohmann::json json = {
        {"cerebellum", CEREBELLUM_VERSION},
        {"llama.cpp", CEREBELLUM_LLAMA_VERSION},
        {"output", result.output.filename().string()},
        {"sha256", result.sha256},
        {"recipe_sha256", recipe_sha256(result.recipe)},
        {"source_fingerprint", result.recipe.source_fingerprint},
        {"budget_bytes", result.budget_bytes},
        {"file_bytes", result.recipe.file_bytes},
        {"budget_used", static_cast<double>(result.recipe.file_bytes) / static_cast<double>(result.budget_bytes)},
        {"delivered", result.delivered},
        {"delivered_kind", kind_name(result.delivered_kind)},
        {"choice", choice},
        {"predicted_kld", result.recipe.predicted_kld},
        {"calibrated_kld", calibrated},
        {"rounds", rounds},
        {"rounds_gain", result.rounds_gain},
        {"search", result.search ? to_json(*result.search) : nlohmann::json()},
        {"scaling", scaling},
        {"text", result.text},
        {"reference", result.reference},
        {"null_floor_kld", result.null_floor_kld},
        {"goal", result.recipe.provenance.at("goal")},
        {"remarks", result.remarks},
        {"effort", effort_name(result.effort)},
        {"stages", to_json(result.stages)},
        {"machine", hardware()},
        {"files", rows}};
    if (const auto label = effort_label(result.effort); !label.empty()) json["label"] = label;
    return json;
}

}  // namespace cerebellum
