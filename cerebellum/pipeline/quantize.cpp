#include "cerebellum/pipeline/quantize.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/core/digest_memory.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/output_lock.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/size.h"
#include "cerebellum/core/temporary_name.h"
#include "cerebellum/evaluate/built_file.h"
#include "cerebellum/pipeline/allocation.h"
#include "cerebellum/pipeline/competition.h"
#include "cerebellum/pipeline/doctor.h"
#include "cerebellum/pipeline/mix_scores.h"
#include "cerebellum/pipeline/scaled_model.h"
#include "cerebellum/version.h"

namespace cerebellum {

namespace fs = std::filesystem;

namespace {

fs::path beside(const fs::path& output, std::string_view ending) {
    fs::path path = output;
    path.replace_extension();
    path += ending;
    return path;
}

/// Where this process builds a file that is not the output, or not yet. What a killed run has left of that kind goes:
/// the output is ours alone.
fs::path scratch_path(fs::path output, std::string_view what) {
    output += what;
    const auto stem = output.filename().string() + '.';
    std::error_code code;
    for (const auto& entry : fs::directory_iterator(fs::absolute(output).parent_path(), code))
        if (entry.path().filename().string().starts_with(stem)) fs::remove(entry.path(), code);
    return temporary_name(output);
}

/// A budget below the smallest possible file is refused before anything is measured.
void check_budget(Session& session, std::uint64_t budget_bytes) {
    const auto& source = session.source();
    std::map<std::string, std::vector<Encoding>> candidates;
    for (const auto& entry : session.plan())
        if (session.is_measurable(entry.name)) candidates[entry.name] = entry.types;
    // An earlier run may have measured more; what was asked for holds.
    if (session.options().types.empty())
        for (const auto& measured : session.journal().measurements())
            if (const auto type = parse_encoding(measured.type)) candidates[measured.tensor].push_back(*type);
    AllocationProblem problem;
    problem.fixed_bytes = fixed_bytes(source, imatrix_info(session.imatrix(), session.imatrix_name()));
    problem.budget_bytes = budget_bytes;
    for (const auto& tensor : source.tensors()) {
        TypeChoice smallest{tensor.type, tensor_bytes(tensor, tensor.type), 0.0};
        for (const auto type : candidates[tensor.name])
            if (const auto bytes = tensor_bytes(tensor, type.type); bytes < smallest.bytes)
                smallest = {type, bytes, 0.0};
        problem.tensors.push_back({tensor.name, {smallest}});
    }
    allocate(problem);
}

/// Throws UsageError where the model cannot be measured both as it is and scaled.
void check_scaling_options(Session& session, const QuantizeOptions& options) {
    if (options.request.goal.kind != AllocationGoal::Kind::size)
        throw UsageError("--scaling auto goes with a size only");
    if (session.reference_name() != "the source")
        throw UsageError("--scaling auto goes without --reference: the scaled model is measured against the source");
    if (!session.replays())
        throw UsageError("--scaling auto needs the model to be replayed, which was not possible or not wanted");
}

/// Says at the begin of every stage what it and the rest will take, where the job is long enough for that to matter.
void announce(Session& session, const QuantizeOptions& options) {
    constexpr double long_s = 20.0;
    if (!options.expect || !session.replays()) return;
    const auto wanted = session.plan();
    if (session.estimate(wanted, {}).seconds < long_s) return;
    session.times().on_begin = [expect = options.expect,
                                plan = plan_job(session, planned_job(session.source(), options),
                                                session.rates(wanted))](std::string_view name) {
        const auto stage = std::ranges::find(plan.stages, name, &PlannedStage::name);
        // Measuring knows better what of it is left.
        const double stage_s = name == "measuring" || stage == plan.stages.end() ? 0.0 : stage->seconds.value_or(0.0);
        if (stage != plan.stages.end()) expect(stage_s, plan.seconds_after(name));
    };
}

/// What makes the result less than what was hoped for, and is known before hours of work.
void warn_of_source(Session& session, std::uint64_t budget_bytes, bool sized, Progress& progress) {
    const auto& source = session.source();
    TypeMap types;  // any that is no tensor's own: which it will be needs the importance matrix
    for (const auto& name : session.wanted_tensors()) types[name] = GGML_TYPE_F32;
    if (const auto warning = requantization_warning(source, types); !warning.empty()) progress.warn(warning);
    if (sized && budget_bytes >= source.file_size())
        progress.warn(fmt::format(
            "the size asked for, {}, is no less than {}'s own {}: nothing needs to be quantized to reach it; look "
            "whether it was meant in another unit",
            format_bytes(budget_bytes), source.path().filename().string(), format_bytes(source.file_size())));
}

std::vector<Contender*> pointers(std::vector<Contender>& contenders) {
    std::vector<Contender*> result;
    for (auto& contender : contenders) result.push_back(&contender);
    return result;
}

bool has_figures(const Contender& contender) {
    return is_usable(contender.selection) && is_usable(contender.test);
}

}  // namespace

fs::path recipe_path(const fs::path& output) {
    return beside(output, ".recipe.json");
}
fs::path type_file_path(const fs::path& output) {
    return beside(output, ".tensor-types.txt");
}
fs::path imatrix_path(const fs::path& output) {
    return beside(output, ".imatrix.gguf");
}
fs::path results_path(const fs::path& output) {
    return beside(output, ".results.json");
}

JobRequest planned_job(const GgufFile& source, const QuantizeOptions& options) {
    const auto& goal = options.request.goal;
    JobRequest request;
    request.compare_all = options.compare_all;
    request.rounds = options.rounds;
    request.search_seconds = options.search_seconds;
    constexpr double usual_bits = 4.5;
    request.budget_bytes = static_cast<std::uint64_t>(usual_bits / 8.0 * static_cast<double>(source.n_weights()));
    if (goal.kind == AllocationGoal::Kind::size) request.budget_bytes = goal.size.bytes(source.n_weights());
    if (goal.device_bytes + goal.host_bytes > 0) request.budget_bytes = goal.device_bytes + goal.host_bytes;
    request.budget_bytes = std::min(request.budget_bytes, source.file_size());
    return request;
}

QuantizeResult quantize_model(Session& session, const QuantizeOptions& options, Progress& progress) {
    const auto& source = session.source();
    QuantizeResult result;
    result.effort = session.options().effort;
    result.output = options.output;
    result.n_weights = source.n_weights();
    result.compare_all = options.compare_all;
    const bool sized = options.request.goal.kind == AllocationGoal::Kind::size;
    result.budget_bytes = sized ? options.request.goal.size.bytes(result.n_weights) : source.file_size();
    // Everything that can be refused is refused before the long work.
    check_output_path(options.output, std::min(result.budget_bytes, source.file_size()), options.overwrite);

    if (fs::exists(options.output) && fs::equivalent(options.output, source.path()))
        throw Error(fmt::format("the output {} is the source itself; choose another name", options.output.string()));
    check_own_recipes_options(options);
    warn_of_source(session, result.budget_bytes, sized, progress);
    if (options.scaling) check_scaling_options(session, options);
    if (sized) check_budget(session, result.budget_bytes);
    parse_profile(options.aim.profile, session.text().calibration_domains);
    if (options.search_seconds > 0.0) check_search_text(session);

    announce(session, options);
    if (options.scaling) {
        const StageTimer searching(session.times(), "searching scales");
        result.scaling = ScalingOutcome{find_scaling(session, progress), {}};
    }
    const bool is_scaled = result.scaling && !result.scaling->search.scalings.empty();
    auto plain =
        make_own_recipes(session, source, options, is_scaled ? "cerebellum without scaling" : "cerebellum", progress);
    result.budget_bytes = plain.budget_bytes;
    result.remarks = plain.remarks;
    result.text = session.text().description;
    if (!options.aim.profile.empty()) result.text += fmt::format(", profile {}", options.aim.profile);
    result.reference = session.reference_name();
    result.null_floor_kld = session.null_floor_kld();
    StageTimer timer(session.times(), "competing");
    // A stock mix may be delivered only where it obeys what was asked for.
    const auto may_be_delivered = [&](const Contender& other) {
        return other.fits && (options.request.constraints.empty() || is_allowed(plain.problem, other.types)) &&
               reaches_goal(source, other.types, plain.goal);
    };
    auto others = compete(
        session, plain, {options.aim, options.compare_all, result.effort == Effort::quick, may_be_delivered}, progress);
    auto everyone = pointers(plain.versions);
    for (auto& other : others) everyone.push_back(&other);

    std::optional<ScaledModel> scaled_model;
    std::optional<OwnRecipes> scaled;
    if (is_scaled) {
        timer.next("scaled model");
        scaled_model.emplace(session, result.scaling->search.scalings, progress);
        scaled = make_own_recipes(scaled_model->session(), source, options, "cerebellum", progress);
        scaled->recipe.scaling = result.scaling->search.scalings;
        auto versions = pointers(scaled->versions);
        constexpr TextPart parts[] = {TextPart::selection, TextPart::test};
        replay_scores(scaled_model->session(), versions, parts, options.aim, progress);
        scaled_model->session().rest();
        everyone.insert(everyone.end(), versions.begin(), versions.end());
        result.scaling->gain = kld_difference(plain.final().test, scaled->final().test);
    }

    // What has no figures was warned of, and is not chosen.
    std::erase_if(everyone, [](const Contender* c) { return !has_figures(*c); });
    // Never worse: the choice is made on the selection text alone. Among equals the one that took least effort.
    const auto objective = options.aim.objective;
    std::vector<Contender*> deliverable;
    for (auto* contender : everyone)
        if (contender->replayed() && (contender->kind == Contender::Kind::ours || may_be_delivered(*contender)))
            deliverable.push_back(contender);
    if (deliverable.empty())
        throw Error(
            "neither our mix nor any other of this size has a damage that is a number on the selection text; use "
            "--device CPU, or look for weights that are none in the source");
    std::ranges::stable_sort(deliverable, {}, [&](const Contender* c) { return selection_cost(*c, objective); });
    Contender* const winner = deliverable.front();
    if (deliverable.size() > 1)
        result.choice = {deliverable[1]->name,
                         cost_difference(deliverable[1]->selection, winner->selection, objective)};
    result.delivered = winner->name;
    result.delivered_kind = winner->kind;
    auto& own = scaled && scaled->holds(winner) ? *scaled : plain;
    auto& measured = &own == &plain ? session : scaled_model->session();
    const auto& imatrix = measured.imatrix();
    const auto& tried = scaled ? *scaled : plain;
    result.rounds = tried.rounds;
    if (!tried.rounds.empty())
        result.rounds_gain =
            kld_difference(tried.versions.front().test, tried.versions[tried.n_before_search - 1].test);
    result.search = tried.search;
    if (result.search)
        result.search->gain = kld_difference(tried.versions[tried.n_before_search - 1].test, tried.final().test);

    result.recipe = own.recipe_of(source, *winner, imatrix_info(imatrix, measured.imatrix_name()));
    Provenance provenance = Provenance::full;
    if (winner->kind != Contender::Kind::ours) {
        const auto best = std::ranges::find(deliverable, Contender::Kind::ours, &Contender::kind);
        progress.warn(best == deliverable.end()
                          ? fmt::format("our own mix has no usable figure, so {} is delivered", winner->name)
                          : fmt::format("{} does less damage on the selection text ({:.5f} against {:.5f}), so that "
                                        "mix is delivered",
                                        winner->name, selection_cost(*winner, objective),
                                        selection_cost(**best, objective)));
        if (result.recipe.file_bytes > result.budget_bytes) {
            provenance = Provenance::none;
            result.recipe.provenance[metadata_key] = "none";
            result.recipe.file_bytes = winner->bytes;
        }
    }
    result.prediction = own.prediction_of(winner->types);
    result.recipe.provenance["delivered"] = result.delivered;
    result.recipe.provenance["text"] = result.text;
    if (result.effort != Effort::normal) result.recipe.provenance["effort"] = effort_name(result.effort);
    note_moments(measured.journal(), result.recipe);
    if (result.reference != "the source") result.recipe.provenance["reference"] = result.reference;

    const auto build = [&](Session& with, const Recipe& recipe, const fs::path& path, Provenance keys) {
        BuildOptions build_options;
        build_options.threads = session.threads();
        build_options.overwrite = true;
        build_options.tensor_order = session.tensor_order();
        build_options.imatrix_file = with.imatrix_name();
        build_options.provenance = keys;
        build_options.moments = with.moments();
        build_options.known = [&with](const std::string& tensor, const Encoding& type) {
            return with.known_bytes(tensor, type);
        };
        return build_gguf(source, recipe, &with.imatrix(), path, build_options, progress);
    };
    timer.next("building");
    // The delivered file is built under a scratch name too, so that the output appears only when it is verified.
    const ScratchFile built(scratch_path(options.output, ".unverified"));
    if (const auto bytes = build(measured, result.recipe, built.path(), provenance);
        bytes > result.budget_bytes || bytes != result.recipe.file_bytes)
        throw Error(fmt::format("the built file has {} bytes where {} were predicted (budget {}); please report this",
                                bytes, result.recipe.file_bytes, result.budget_bytes));
    winner->bytes = result.recipe.file_bytes;

    // For real: the delivered file and the two nearest stock mixes, each built and loaded afresh by libllama.
    std::vector<Contender*> nearest;
    Contender* below = nullptr;
    Contender* above = nullptr;
    for (auto& other : others) {
        if (&other == winner || !has_figures(other)) continue;
        if (other.fits && (below == nullptr || other.bytes >= below->bytes)) below = &other;
        if (!other.fits && above == nullptr) above = &other;
    }
    std::vector<fs::path> files = {built.path()};
    std::vector<std::unique_ptr<ScratchFile>> scratch;
    nearest.push_back(winner);
    for (auto* other : {below, above}) {
        if (other == nullptr) continue;
        scratch.push_back(
            std::make_unique<ScratchFile>(scratch_path(options.output, fmt::format(".preset-{}", scratch.size()))));
        Recipe recipe;
        recipe.types = other->types;
        build(session, recipe, scratch.back()->path(), Provenance::none);
        files.push_back(scratch.back()->path());
        nearest.push_back(other);
    }
    timer.next("verifying");
    if (!session.place().on_cpu()) session.rest();  // what replays hold there makes room for whole models
    const auto real =
        score_files(session.model(), files, session.text().test, session.threads(), progress, session.place());
    for (std::size_t i = 0; i < nearest.size(); ++i) {
        nearest[i]->test = weigh(real[i], options.aim, session.text().test_domains);
        nearest[i]->built = true;
    }

    timer.next("writing");
    Contender original;
    original.kind = Contender::Kind::source;
    original.name = session.options().reference ? session.reference_name() : "source";
    original.bytes = fs::file_size(session.model().path());
    original.types = complete_types(source, {});
    original.test = everyone.front()->test;
    for (auto& window : original.test)
        window = {window.count, 0.0, window.reference_nll, window.reference_nll, window.count};
    original.fits = original.bytes <= result.budget_bytes;
    result.contenders.push_back(std::move(original));
    for (auto* contender : everyone) result.contenders.push_back(*contender);
    std::stable_sort(result.contenders.begin() + 1, result.contenders.end(),
                     [](const Contender& a, const Contender& b) { return a.bytes < b.bytes; });

    result.sha256 = content_sha256(built.path(), progress);
    if (options.lock != nullptr) options.lock->finishing();
    write_recipe(recipe_path(options.output), result.recipe);
    write_file_atomically(type_file_path(options.output),
                          tensor_type_file(complete_types(source, result.recipe.types)));
    write_imatrix(options.imatrix_out.empty() ? imatrix_path(options.output) : options.imatrix_out, imatrix);
    result.stages = session.times().stages();
    write_file_atomically(results_path(options.output), json_to_text(to_json(result), 2) + "\n");
    fs::rename(built.path(), options.output);
    if (scaled_model) scaled_model->discard_file();
    return result;
}

namespace {

nlohmann::json to_json(const Estimate& value) {
    return {{"mean", value.mean}, {"error", value.error}};
}

/// What was not measured of a mix is null.
nlohmann::json to_json(const Contender& contender, std::uint64_t n_weights) {
    nlohmann::json row = {{"name", contender.name},
                          {"kind", kind_name(contender.kind)},
                          {"bytes", contender.bytes},
                          {"bpw", 8.0 * static_cast<double>(contender.bytes) / static_cast<double>(n_weights)},
                          {"fits", contender.fits},
                          {"measured_by", measured_by(contender)}};
    if (contender.predicted) {
        row["predicted_kld"] = to_json(contender.predicted->kld);
        if (contender.predicted->at_least) row["predicted_at_least"] = true;
    }
    if (contender.replayed()) row["selection_kld"] = to_json(summarize(contender.selection).kld);
    if (contender.predicted_only()) {
        for (const auto* key : {"kld", "perplexity", "delta_nll", "top1_agree", "tokens"}) row[key] = nullptr;
        if (contender.predicted) row["kld"] = row["predicted_kld"];
        return row;
    }
    const auto figures = summarize(contender.test);
    row["kld"] = to_json(figures.kld);
    row["perplexity"] = {{"mean", figures.perplexity}, {"error", figures.perplexity_error}};
    row["delta_nll"] = to_json(figures.delta_nll);
    row["top1_agree"] = to_json(figures.top1_agree);
    row["tokens"] = figures.tokens;
    return row;
}

}  // namespace

nlohmann::json to_json(const QuantizeResult& result) {
    nlohmann::json rows = nlohmann::json::array();
    for (const auto& contender : result.contenders) rows.push_back(to_json(contender, result.n_weights));
    nlohmann::json calibrated;
    if (result.prediction && std::isfinite(result.prediction->calibrated.error))
        calibrated = to_json(result.prediction->calibrated);
    auto rounds = nlohmann::json::array();
    for (const auto& round : result.rounds)
        rounds.push_back({{"tried", round.tried},
                          {"changed", round.changed},
                          {"kld_gain", to_json(round.gain)},
                          {"taken", round.taken}});
    nlohmann::json choice = {{"rule", "least damage on the selection text, of all that fit and are allowed"},
                             {"compare", result.compare_all ? "all" : "auto"}};
    if (!result.choice.next_best.empty()) {
        choice["next_best"] = result.choice.next_best;
        choice["difference"] = to_json(result.choice.difference);
    }
    nlohmann::json scaling;
    if (result.scaling) {
        scaling = to_json(result.scaling->search);
        scaling.erase("scalings");  // they stand in the recipe
        scaling["scaled"] = result.scaling->search.scalings.size();
        scaling["kld_gain"] = to_json(result.scaling->gain);
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
        {"rounds_gain", to_json(result.rounds_gain)},
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
