#include "cerebellum/pipeline/quantize.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/evaluate/built_file.h"
#include "cerebellum/pipeline/allocation.h"
#include "cerebellum/pipeline/doctor.h"
#include "cerebellum/pipeline/mix_scores.h"
#include "cerebellum/pipeline/sequential.h"
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

/// A budget below the smallest possible file is refused before anything is measured.
void check_budget(Session& session, std::uint64_t budget_bytes) {
    const auto& source = session.source();
    std::map<std::string, std::vector<Encoding>> candidates;
    for (const auto& entry : session.plan())
        if (session.is_measurable(entry.name)) candidates[entry.name] = entry.types;
    for (const auto& measured :
         session.journal().measurements())  // by an earlier run, which may have allowed more types
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

QuantizeResult quantize_model(Session& session, const QuantizeOptions& options, Progress& progress) {
    const auto& source = session.source();
    QuantizeResult result;
    result.output = options.output;
    result.n_weights = source.n_weights();
    auto request = options.request;
    const bool sized = request.goal.kind == AllocationGoal::Kind::size;
    result.budget_bytes = sized ? request.goal.size.bytes(result.n_weights) : source.file_size();
    // Everything that can be refused is refused before the long work.
    check_output_path(options.output, std::min(result.budget_bytes, source.file_size()), options.overwrite);

    if (fs::exists(options.output) && fs::equivalent(options.output, source.path()))
        throw Error(fmt::format("the output {} is the source itself; choose another name", options.output.string()));
    if (options.rounds > 0 && (options.aim.objective != Objective::kld || !sized || !request.constraints.empty()))
        throw UsageError("--rounds goes with a size, without constraints, and with --objective kld only");
    if (options.search_seconds > 0.0 && (options.aim.objective != Objective::kld || !sized))
        throw UsageError("--search goes with a size and with --objective kld only");
    if (sized) check_budget(session, result.budget_bytes);
    if (request.goal.kind == AllocationGoal::Kind::max_kld && options.aim.objective != Objective::kld)
        throw UsageError("--max-kld goes with --objective kld only");
    parse_profile(options.aim.profile, session.text().calibration_domains);
    if (options.search_seconds > 0.0) check_search_text(session);

    if (options.sequential)
        progress.info(describe(measure_sequentially(session, {.budgets_bytes = {result.budget_bytes}}, progress)));
    else
        session.measure();
    const auto& imatrix = session.imatrix();
    const auto imatrix_file = imatrix_info(imatrix, session.imatrix_name());
    result.text = session.text().description;
    result.reference = session.reference_name();
    result.null_floor_kld = session.null_floor_kld();
    auto problem = make_problem(source, session.journal(), imatrix_file, 0, options.aim);
    const Aim in_kld{Objective::kld, options.aim.profile, options.aim.rounding};
    auto kld_problem = make_problem(source, session.journal(), imatrix_file, 0, in_kld);
    if (!options.aim.profile.empty()) result.text += fmt::format(", profile {}", options.aim.profile);

    Contender ours;
    ours.kind = Contender::Kind::ours;
    ours.name = "cerebellum";
    ours.fits = true;
    const auto allocate_ours = [&] {
        const auto solved = solve_goal(source, problem, request);
        result.recipe = make_recipe(source, session.journal(), solved, options.aim);
        result.budget_bytes = solved.budget_bytes;
        result.remarks = solved.remarks;
        ours.types = complete_types(source, result.recipe.types);
        ours.bytes = result.recipe.file_bytes;
    };
    allocate_ours();
    if (request.goal.kind == AllocationGoal::Kind::max_kld) {
        constexpr int most_rounds = 4;
        constexpr double margin = 0.98;
        for (int round = 0;; ++round) {
            Contender* alone[] = {&ours};
            replay_scores(session, alone, TextPart::selection, options.aim, progress);
            const double measured = selection_cost(ours, Objective::kld);
            if (measured <= options.request.goal.max_kld) break;
            if (round == most_rounds)
                throw Error(
                    fmt::format("the smallest file predicted to stay under a KLD of {} measures {:.6g} on the "
                                "selection text even after {} corrections; ask for a --size instead",
                                options.request.goal.max_kld, measured, most_rounds));
            request.goal.max_kld *= margin * options.request.goal.max_kld / measured;
            progress.info(fmt::format("measured {:.6g} where at most {:.6g} is wanted: allocating for {:.6g}", measured,
                                      options.request.goal.max_kld, request.goal.max_kld));
            allocate_ours();
        }
    }
    problem.budget_bytes = kld_problem.budget_bytes = result.budget_bytes;
    measure_recipes(session, kld_problem, neighbouring_budgets(result.budget_bytes), progress);
    const auto calibration = make_calibration(kld_problem, session.journal(), in_kld);
    note_prediction(kld_problem, calibration, result.recipe);
    const auto allowed = constrained(problem, request.constraints);
    const auto may_be_delivered = [&](const Contender& other) {
        return other.fits && (request.constraints.empty() || is_allowed(allowed, other.types)) &&
               reaches_goal(source, other.types, request.goal);
    };
    // Ours as it was allocated, and what rounds and search have made of it.
    std::vector<Contender> versions = {ours};
    const auto add_version = [&](const TypeMap& types, const char* without) {
        if (changed_types(source, types) == changed_types(source, versions.back().types)) return;
        versions.push_back(versions.back());
        versions[versions.size() - 2].name = fmt::format("cerebellum without {}", without);
        versions.back().types = complete_types(source, types);
        versions.back().bytes = predicted_file_bytes(source, versions.back().types, imatrix_file, Provenance::full);
    };
    if (options.rounds > 0) {
        auto refinement = refine(session, kld_problem, ours.types, options.rounds, in_kld, progress);
        result.rounds = std::move(refinement.rounds);
        add_version(refinement.types, "rounds");
    }
    const auto n_before_search = versions.size();
    if (options.search_seconds > 0.0) {
        result.search =
            search_for(session, allowed, versions.back().types, options.search_seconds, options.aim, progress);
        add_version(result.search->result.types, "search");
    }
    auto others = find_contenders(session, result.budget_bytes, options.aim, progress);

    std::vector<Contender*> everyone;
    for (auto& version : versions) everyone.push_back(&version);
    for (auto& other : others) everyone.push_back(&other);
    replay_scores(session, everyone, TextPart::selection, options.aim, progress);
    replay_scores(session, everyone, TextPart::test, options.aim, progress);
    if (!result.rounds.empty())
        result.rounds_gain = kld_difference(versions.front().test, versions[n_before_search - 1].test);
    if (result.search) result.search->gain = kld_difference(versions[n_before_search - 1].test, versions.back().test);

    // Never worse: the choice is made on the selection text alone. Among equals the one that took least effort.
    const auto objective = options.aim.objective;
    std::vector<Contender*> deliverable;
    for (auto* contender : everyone)
        if (contender->kind == Contender::Kind::ours || may_be_delivered(*contender)) deliverable.push_back(contender);
    std::ranges::stable_sort(deliverable, {}, [&](const Contender* c) { return selection_cost(*c, objective); });
    Contender* const winner = deliverable.front();
    if (deliverable.size() > 1)
        result.choice = {deliverable[1]->name,
                         cost_difference(deliverable[1]->selection, winner->selection, objective)};
    result.delivered = winner->name;
    result.delivered_kind = winner->kind;
    Provenance provenance = Provenance::full;
    if (winner != &versions.front()) {
        result.recipe.types = winner->types;
        note_prediction(kld_problem, calibration, result.recipe);
        result.recipe.file_bytes = predicted_file_bytes(source, winner->types, imatrix_file, Provenance::full);
    }
    if (winner->kind == Contender::Kind::ours && winner != &versions.front()) {
        result.recipe.provenance["optimal"] = "measured around an earlier recipe";
        if (options.rounds > 0) result.recipe.provenance["rounds"] = std::to_string(result.rounds.size());
        if (result.search && winner == &versions.back())
            result.recipe.provenance.merge(search_provenance(result.search->result));
    }
    if (winner->kind != Contender::Kind::ours) {
        const auto best = std::ranges::find(deliverable, Contender::Kind::ours, &Contender::kind);
        progress.warn(
            fmt::format("{} does less damage on the selection text ({:.5f} against {:.5f}), so that mix "
                        "is delivered",
                        winner->name, selection_cost(*winner, objective), selection_cost(**best, objective)));
        if (result.recipe.file_bytes > result.budget_bytes) {
            provenance = Provenance::none;
            result.recipe.provenance[metadata_key] = "none";
            result.recipe.file_bytes = winner->bytes;
        }
    }
    result.prediction = predict_whole(kld_problem, calibration, winner->types);
    result.recipe.provenance["delivered"] = result.delivered;
    result.recipe.provenance["text"] = result.text;
    note_moments(session.journal(), result.recipe);
    if (result.reference != "the source") result.recipe.provenance["reference"] = result.reference;

    if (const auto warning = requantization_warning(source, result.recipe.types); !warning.empty())
        progress.warn(warning);
    const auto build = [&](const Recipe& recipe, const fs::path& path, Provenance with) {
        BuildOptions build_options;
        build_options.threads = session.threads();
        build_options.overwrite = true;
        build_options.tensor_order = session.tensor_order();
        build_options.imatrix_file = session.imatrix_name();
        build_options.provenance = with;
        build_options.moments = session.moments();
        return build_gguf(source, recipe, &imatrix, path, build_options, progress);
    };
    // The delivered file is built under a scratch name too, so that the output appears only when it is verified.
    const ScratchFile built(beside(options.output, ".unverified.gguf"));
    if (const auto bytes = build(result.recipe, built.path(), provenance);
        bytes > result.budget_bytes || bytes != result.recipe.file_bytes)
        throw Error(fmt::format("the built file has {} bytes where {} were predicted (budget {}); please report this",
                                bytes, result.recipe.file_bytes, result.budget_bytes));
    winner->bytes = result.recipe.file_bytes;

    // For real: the delivered file and the two nearest stock mixes, each built and loaded afresh by libllama.
    std::vector<Contender*> nearest;
    Contender* below = nullptr;
    Contender* above = nullptr;
    for (auto& other : others) {
        if (&other == winner) continue;
        if (other.fits && (below == nullptr || other.bytes >= below->bytes)) below = &other;
        if (!other.fits && above == nullptr) above = &other;
    }
    std::vector<fs::path> files = {built.path()};
    std::vector<std::unique_ptr<ScratchFile>> scratch;
    nearest.push_back(winner);
    for (auto* other : {below, above}) {
        if (other == nullptr) continue;
        scratch.push_back(
            std::make_unique<ScratchFile>(beside(options.output, fmt::format(".preset-{}.gguf", scratch.size()))));
        Recipe recipe;
        recipe.types = other->types;
        build(recipe, scratch.back()->path(), Provenance::none);
        files.push_back(scratch.back()->path());
        nearest.push_back(other);
    }
    const auto real = score_files(session.model(), files, session.text().test, session.threads(), progress);
    for (std::size_t i = 0; i < nearest.size(); ++i) {
        nearest[i]->test = weigh(real[i], options.aim, session.text().test_domains);
        nearest[i]->built = true;
    }

    Contender original;
    original.kind = Contender::Kind::source;
    original.name = session.options().reference ? session.reference_name() : "source";
    original.bytes = fs::file_size(session.model().path());
    original.types = complete_types(source, {});
    original.test = versions.front().test;
    for (auto& window : original.test)
        window = {window.count, 0.0, window.reference_nll, window.reference_nll, window.count};
    original.fits = original.bytes <= result.budget_bytes;
    result.contenders.push_back(std::move(original));
    for (auto& other : others) result.contenders.push_back(std::move(other));
    for (auto& version : versions) result.contenders.push_back(std::move(version));
    std::stable_sort(result.contenders.begin() + 1, result.contenders.end(),
                     [](const Contender& a, const Contender& b) { return a.bytes < b.bytes; });

    write_recipe(recipe_path(options.output), result.recipe);
    write_file_atomically(type_file_path(options.output),
                          tensor_type_file(complete_types(source, result.recipe.types)));
    write_imatrix(options.imatrix_out.empty() ? imatrix_path(options.output) : options.imatrix_out, imatrix);
    write_file_atomically(results_path(options.output), to_json(result).dump(2) + "\n");
    fs::rename(built.path(), options.output);
    return result;
}

nlohmann::json to_json(const QuantizeResult& result) {
    const auto estimate = [](const Estimate& value) {
        return nlohmann::json{{"mean", value.mean}, {"error", value.error}};
    };
    const auto bpw = [&](std::uint64_t bytes) {
        return 8.0 * static_cast<double>(bytes) / static_cast<double>(result.n_weights);
    };
    nlohmann::json rows = nlohmann::json::array();
    for (const auto& contender : result.contenders) {
        const auto figures = summarize(contender.test);
        nlohmann::json row = {
            {"name", contender.name},
            {"kind", kind_name(contender.kind)},
            {"bytes", contender.bytes},
            {"bpw", bpw(contender.bytes)},
            {"fits", contender.fits},
            {"measured_by", contender.built || contender.kind == Contender::Kind::source ? "libllama" : "replay"},
            {"kld", estimate(figures.kld)},
            {"perplexity", {{"mean", figures.perplexity}, {"error", figures.perplexity_error}}},
            {"delta_nll", estimate(figures.delta_nll)},
            {"top1_agree", estimate(figures.top1_agree)},
            {"tokens", figures.tokens}};
        if (!contender.selection.empty()) row["selection_kld"] = estimate(summarize(contender.selection).kld);
        rows.push_back(std::move(row));
    }
    nlohmann::json calibrated;
    if (result.prediction && std::isfinite(result.prediction->calibrated.error))
        calibrated = estimate(result.prediction->calibrated);
    auto rounds = nlohmann::json::array();
    for (const auto& round : result.rounds)
        rounds.push_back({{"tried", round.tried},
                          {"changed", round.changed},
                          {"kld_gain", estimate(round.gain)},
                          {"taken", round.taken}});
    nlohmann::json choice = {{"rule", "least damage on the selection text, of all that fit and are allowed"}};
    if (!result.choice.next_best.empty()) {
        choice["next_best"] = result.choice.next_best;
        choice["difference"] = estimate(result.choice.difference);
    }
    return {{"cerebellum", CEREBELLUM_VERSION},
            {"llama.cpp", CEREBELLUM_LLAMA_VERSION},
            {"output", result.output.string()},
            {"budget_bytes", result.budget_bytes},
            {"file_bytes", result.recipe.file_bytes},
            {"budget_used", static_cast<double>(result.recipe.file_bytes) / static_cast<double>(result.budget_bytes)},
            {"delivered", result.delivered},
            {"delivered_kind", kind_name(result.delivered_kind)},
            {"choice", choice},
            {"predicted_kld", result.recipe.predicted_kld},
            {"calibrated_kld", calibrated},
            {"rounds", rounds},
            {"rounds_gain", estimate(result.rounds_gain)},
            {"search", result.search ? to_json(*result.search) : nlohmann::json()},
            {"text", result.text},
            {"reference", result.reference},
            {"null_floor_kld", result.null_floor_kld},
            {"goal", result.recipe.provenance.at("goal")},
            {"remarks", result.remarks},
            {"machine", hardware()},
            {"files", rows}};
}

}  // namespace cerebellum
