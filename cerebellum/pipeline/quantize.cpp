#include "cerebellum/pipeline/quantize.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/core/digest_memory.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/output_lock.h"
#include "cerebellum/core/temporary_name.h"
#include "cerebellum/evaluate/built_file.h"
#include "cerebellum/pipeline/allocation.h"
#include "cerebellum/pipeline/competition.h"
#include "cerebellum/pipeline/job_checks.h"
#include "cerebellum/pipeline/mix_scores.h"
#include "cerebellum/pipeline/scaled_model.h"

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

std::vector<Contender*> pointers(std::vector<Contender>& contenders) {
    std::vector<Contender*> result;
    for (auto& contender : contenders) result.push_back(&contender);
    return result;
}

bool has_figures(const Contender& contender) {
    return is_usable(contender.selection) && is_usable(contender.test);
}

/// What the steps of a job have in common.
struct Job {
    Session& session;
    const QuantizeOptions& options;
    Progress& progress;
    QuantizeResult& result;

    const GgufFile& source() const { return session.source(); }
    bool is_scaled() const { return result.scaling && !result.scaling->search.scalings.empty(); }
};

/// Everyone who competes. It does not move: it holds pointers to its own.
struct Field {
    explicit Field(OwnRecipes own) : plain(std::move(own)) {}
    Field(const Field&) = delete;
    Field& operator=(const Field&) = delete;

    OwnRecipes plain;
    std::vector<Contender> stock;
    std::optional<ScaledModel> scaled_model;
    std::optional<OwnRecipes> scaled;     // of the scaled model
    std::vector<Contender*> everyone;     // that has figures
    std::vector<Contender*> deliverable;  // the best first

    Contender& winner() const { return *deliverable.front(); }
    bool scaled_wins() const { return scaled && scaled->holds(&winner()); }
    const OwnRecipes& winners_recipes() const { return scaled_wins() ? *scaled : plain; }
    Session& winners_session(Session& session) { return scaled_wins() ? scaled_model->session() : session; }
};

/// Searches for scales where asked to, and measures the model as it is.
OwnRecipes measure(const Job& job) {
    auto& [session, options, progress, result] = job;
    announce(session, options);
    if (options.scaling) {
        const StageTimer searching(session.times(), "searching scales");
        result.scaling = ScalingOutcome{find_scaling(session, progress), {}};
    }
    auto own = make_own_recipes(session, job.source(), options,
                                job.is_scaled() ? "cerebellum without scaling" : "cerebellum", progress);
    result.budget_bytes = own.budget_bytes;
    result.remarks = own.remarks;
    result.text = session.text().description;
    if (!options.aim.profile.empty()) result.text += fmt::format(", profile {}", options.aim.profile);
    result.reference = session.reference_name();
    result.null_floor_kld = session.null_floor_kld();
    return own;
}

/// Measures the model with scaled channels as well, and enters what comes of it.
void enter_scaled(const Job& job, Field& field) {
    const StageTimer timer(job.session.times(), "scaled model");
    const auto& scalings = job.result.scaling->search.scalings;
    field.scaled_model.emplace(job.session, scalings, job.progress);
    auto& session = field.scaled_model->session();
    field.scaled = make_own_recipes(session, job.source(), job.options, "cerebellum", job.progress);
    field.scaled->recipe.scaling = scalings;
    auto versions = pointers(field.scaled->versions);
    constexpr TextPart parts[] = {TextPart::selection, TextPart::test};
    replay_scores(session, versions, parts, job.options.aim, job.progress);
    session.rest();
    field.everyone.insert(field.everyone.end(), versions.begin(), versions.end());
    job.result.scaling->gain = kld_difference(field.plain.final().test, field.scaled->final().test);
}

/// Never worse: the choice is made on the selection text alone. Among equals the one that took least effort.
void choose(const Job& job, Field& field, const std::function<bool(const Contender& stock)>& may_be_delivered) {
    // What has no figures was warned of, and is not chosen.
    std::erase_if(field.everyone, [](const Contender* c) { return !has_figures(*c); });
    for (auto* contender : field.everyone)
        if (contender->replayed() && (contender->kind == Contender::Kind::ours || may_be_delivered(*contender)))
            field.deliverable.push_back(contender);
    if (field.deliverable.empty())
        throw Error(
            "neither our mix nor any other of this size has a damage that is a number on the selection text; use "
            "--device CPU, or look for weights that are none in the source");
    const auto objective = job.options.aim.objective;
    std::ranges::stable_sort(field.deliverable, {}, [&](const Contender* c) { return selection_cost(*c, objective); });
    if (field.deliverable.size() > 1)
        job.result.choice = {field.deliverable[1]->name,
                             cost_difference(field.deliverable[1]->selection, field.winner().selection, objective)};
    job.result.delivered = field.winner().name;
    job.result.delivered_kind = field.winner().kind;
}

void note_rounds_and_search(const OwnRecipes& tried, QuantizeResult& result) {
    result.rounds = tried.rounds;
    const auto& before_search = tried.versions[tried.n_before_search - 1].test;
    if (!tried.rounds.empty()) result.rounds_gain = kld_difference(tried.versions.front().test, before_search);
    result.search = tried.search;
    if (result.search) result.search->gain = kld_difference(before_search, tried.final().test);
}

/// Measures stock mixes and, where there are scales, the scaled model, and chooses which file is delivered.
void compete(const Job& job, Field& field) {
    const auto& options = job.options;
    const StageTimer timer(job.session.times(), "competing");
    // A stock mix may be delivered only where it obeys what was asked for.
    const auto may_be_delivered = [&](const Contender& stock) {
        return stock.fits && (options.request.constraints.empty() || is_allowed(field.plain.problem, stock.types)) &&
               reaches_goal(job.source(), stock.types, field.plain.goal);
    };
    const bool nearest_only = job.result.effort == Effort::quick;
    field.stock = compete(job.session, field.plain, {options.aim, options.compare_all, nearest_only, may_be_delivered},
                          job.progress);
    field.everyone = pointers(field.plain.versions);
    for (auto& stock : field.stock) field.everyone.push_back(&stock);
    if (job.is_scaled()) enter_scaled(job, field);
    choose(job, field, may_be_delivered);
    note_rounds_and_search(field.scaled ? *field.scaled : field.plain, job.result);
}

void warn_of_stock_winner(const Job& job, const Field& field) {
    const auto objective = job.options.aim.objective;
    const auto& winner = field.winner();
    const auto best = std::ranges::find(field.deliverable, Contender::Kind::ours, &Contender::kind);
    job.progress.warn(best == field.deliverable.end()
                          ? fmt::format("our own mix has no usable figure, so {} is delivered", winner.name)
                          : fmt::format("{} does less damage on the selection text ({:.5f} against {:.5f}), so that "
                                        "mix is delivered",
                                        winner.name, selection_cost(winner, objective),
                                        selection_cost(**best, objective)));
}

/// Sets the result's recipe to that of the winner. Returns which keys its file gets: a stock mix that fits only without
/// ours gets none.
Provenance write_down(const Job& job, Field& field) {
    auto& result = job.result;
    const auto& winner = field.winner();
    Session& measured = field.winners_session(job.session);
    result.recipe = field.winners_recipes().recipe_of(job.source(), winner,
                                                      imatrix_info(measured.imatrix(), measured.imatrix_name()));
    auto keys = Provenance::full;
    if (winner.kind != Contender::Kind::ours) {
        warn_of_stock_winner(job, field);
        if (result.recipe.file_bytes > result.budget_bytes) {
            keys = Provenance::none;
            result.recipe.provenance[metadata_key] = "none";
            result.recipe.file_bytes = winner.bytes;
        }
    }
    result.prediction = field.winners_recipes().prediction_of(winner.types);
    result.recipe.provenance["delivered"] = result.delivered;
    result.recipe.provenance["text"] = result.text;
    if (result.effort != Effort::normal) result.recipe.provenance["effort"] = effort_name(result.effort);
    note_moments(measured.journal(), result.recipe);
    if (job.session.options().reference) result.recipe.provenance["reference"] = result.reference;
    return keys;
}

std::uint64_t build(const Job& job, Session& with, const Recipe& recipe, const fs::path& path, Provenance keys) {
    BuildOptions options;
    options.threads = job.session.threads();
    options.overwrite = true;
    options.tensor_order = job.session.tensor_order();
    options.imatrix_file = with.imatrix_name();
    options.provenance = keys;
    options.moments = with.moments();
    options.known = [&with](const std::string& tensor, const Encoding& type) { return with.known_bytes(tensor, type); };
    return build_gguf(job.source(), recipe, &with.imatrix(), path, options, job.progress);
}

/// Files that are built for real, the delivered one first, and whose they are.
struct BuiltFiles {
    std::vector<std::unique_ptr<ScratchFile>> files;
    std::vector<Contender*> contenders;
};

/// The stock mixes next to the size, at most one on either side.
std::vector<Contender*> nearest_stock(Field& field) {
    Contender* below = nullptr;
    Contender* above = nullptr;
    for (auto& other : field.stock) {
        if (&other == &field.winner() || !has_figures(other)) continue;
        if (other.fits && (below == nullptr || other.bytes >= below->bytes)) below = &other;
        if (!other.fits && above == nullptr) above = &other;
    }
    std::vector<Contender*> result = {below, above};
    std::erase(result, nullptr);
    return result;
}

/// Builds the delivered file under a scratch name, so that the output appears only when it is verified, and the stock
/// mixes next to it.
BuiltFiles deliver(const Job& job, Field& field) {
    auto& result = job.result;
    const auto keys = write_down(job, field);
    const StageTimer timer(job.session.times(), "building");
    BuiltFiles built;
    const auto add = [&](std::string_view name, Contender& contender) -> const fs::path& {
        built.contenders.push_back(&contender);
        return built.files.emplace_back(std::make_unique<ScratchFile>(scratch_path(job.options.output, name)))->path();
    };
    if (const auto bytes =
            build(job, field.winners_session(job.session), result.recipe, add(".unverified", field.winner()), keys);
        bytes > result.budget_bytes || bytes != result.recipe.file_bytes)
        throw Error(fmt::format("the built file has {} bytes where {} were predicted (budget {}); please report this",
                                bytes, result.recipe.file_bytes, result.budget_bytes));
    field.winner().bytes = result.recipe.file_bytes;
    for (auto* stock : nearest_stock(field)) {
        Recipe recipe;
        recipe.types = stock->types;
        build(job, job.session, recipe, add(fmt::format(".preset-{}", built.files.size() - 1), *stock),
              Provenance::none);
    }
    return built;
}

/// For real: each built file, loaded afresh by libllama.
void verify(const Job& job, const BuiltFiles& built) {
    auto& session = job.session;
    const StageTimer timer(session.times(), "verifying");
    if (!session.place().on_cpu()) session.rest();  // what replays hold there makes room for whole models
    std::vector<fs::path> files;
    for (const auto& file : built.files) files.push_back(file->path());
    const auto real =
        score_files(session.model(), files, session.text().test, session.threads(), job.progress, session.place());
    for (std::size_t i = 0; i < files.size(); ++i) {
        built.contenders[i]->test = weigh(real[i], job.options.aim, session.text().test_domains);
        built.contenders[i]->built = true;
    }
}

/// The source among its contenders: what it would be compared with itself.
Contender source_as_contender(const Job& job, const Field& field) {
    auto& session = job.session;
    Contender original;
    original.kind = Contender::Kind::source;
    original.name = session.options().reference ? session.reference_name() : "source";
    original.bytes = fs::file_size(session.model().path());
    original.types = complete_types(job.source(), {});
    original.test = field.everyone.front()->test;
    for (auto& window : original.test)
        window = {window.count, 0.0, window.reference_nll, window.reference_nll, window.count};
    original.fits = original.bytes <= job.result.budget_bytes;
    return original;
}

/// Writes what lies beside the output, and gives the output its name.
void write(const Job& job, Field& field, const fs::path& built) {
    auto& result = job.result;
    const auto& options = job.options;
    {
        const StageTimer timer(job.session.times(), "writing");
        result.contenders.push_back(source_as_contender(job, field));
        for (const auto* contender : field.everyone) result.contenders.push_back(*contender);
        std::stable_sort(result.contenders.begin() + 1, result.contenders.end(),
                         [](const Contender& a, const Contender& b) { return a.bytes < b.bytes; });
        result.sha256 = content_sha256(built, job.progress);
        if (options.lock != nullptr) options.lock->finishing();
        write_recipe(recipe_path(options.output), result.recipe);
        write_file_atomically(type_file_path(options.output),
                              tensor_type_file(complete_types(job.source(), result.recipe.types)));
        write_imatrix(options.imatrix_out.empty() ? imatrix_path(options.output) : options.imatrix_out,
                      field.winners_session(job.session).imatrix());
        result.stages = job.session.times().stages();
        write_file_atomically(results_path(options.output), json_to_text(to_json(result), 2) + "\n");
        fs::rename(built, options.output);
    }
    if (field.scaled_model) field.scaled_model->discard_file();
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
    QuantizeResult result;
    result.effort = session.options().effort;
    result.output = options.output;
    result.n_weights = session.source().n_weights();
    result.compare_all = options.compare_all;
    const Job job{session, options, progress, result};

    result.budget_bytes = check_job(session, options, progress);
    Field field(measure(job));
    compete(job, field);
    const auto built = deliver(job, field);
    verify(job, built);
    write(job, field, built.files.front()->path());
    return result;
}

}  // namespace cerebellum
