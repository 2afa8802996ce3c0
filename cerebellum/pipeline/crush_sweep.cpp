#include "cerebellum/pipeline/crush_sweep.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <tuple>
#include <utility>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/evaluate/built_file.h"
#include "cerebellum/evaluate/recipe_replay.h"
#include "cerebellum/gguf/imatrix_digest.h"
#include "cerebellum/llama/presets.h"
#include "cerebellum/pipeline/import_allocation.h"
#include "cerebellum/version.h"

namespace cerebellum {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

/// What the source has to give before the baseline runs.
struct FromSource {
    fs::path file;  // the baseline
    std::string text;
    std::string imatrix;
    Estimate kld;
};

/// The baseline as a file beside the journal, made of the source where it is not there yet.
fs::path baseline_file(Session& session, const RunOptions& run, const std::string& name, const Recipe& wanted,
                       Progress& progress) {
    Recipe recipe = wanted;
    // Not only types make the file.
    recipe.provenance = {{"baseline", name}, {imatrix_digest_key, imatrix_sha256(session.imatrix())}};
    recipe.source_fingerprint = session.source().fingerprint();
    recipe.source_name = session.source().path().filename().string();
    auto path =
        fs::absolute(run.journal).parent_path() / fmt::format("{}.baseline-{}.gguf", run.model.stem().string(), name);
    if (fs::exists(path) && GgufFile::open(path).string_value("cerebellum.recipe_sha256") == recipe_sha256(recipe))
        return path;
    BuildOptions build;
    build.threads = session.threads();
    build.overwrite = true;
    build.tensor_order = session.tensor_order();
    build.imatrix_file = session.imatrix_name();
    progress.info(fmt::format("writing the baseline {} to {}", name, path.string()));
    build_gguf(session.source(), recipe, &session.imatrix(), path, build, progress);
    return path;
}

/// Two numbers that a journal holds; an infinite or undefined one is null in JSON.
std::pair<double, double> pair_of(const json& value, std::string_view where) {
    const auto number = [&](std::size_t index) {
        const auto& one = value[index];
        if (!one.is_number() && !one.is_null()) throw Error(fmt::format("{} is no number", where));
        return one.is_null() ? std::nan("") : one.get<double>();
    };
    if (!value.is_array() || value.size() != 2) throw Error(fmt::format("{} is no pair of numbers", where));
    return {number(0), number(1)};
}

Estimate baseline_kld(Session& session, const fs::path& file, Progress& progress) {
    const auto key = "baseline_kld:" + GgufFile::open(file).fingerprint();
    if (const auto stored = session.journal().get_artifact(key)) {
        constexpr std::string_view where = "the divergence of the baseline in the journal";
        const auto [kld, error] = pair_of(parse_json(*stored, where), where);
        return {kld, error};
    }
    const std::vector<fs::path> files = {file};
    const auto scores =
        score_files(session.model(), files, session.measured_windows(), session.threads(), progress, session.place());
    const auto kld = summarize(scores.front()).kld;
    session.journal().put_artifact(key, json_to_text(json{kld.mean, kld.error}));
    return kld;
}

/// The recipe that a baseline's name stands for; the name becomes one for files.
Recipe baseline_recipe(Session& session, std::string& name) {
    std::string upper = name;
    std::ranges::transform(upper, upper.begin(), [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    Recipe recipe;
    if (const auto preset = find_preset(upper)) {
        name = preset->name;
        recipe.types = dry_run(session.source().path(), {.file_type = preset->file_type, .has_imatrix = true}).types;
        return recipe;
    }
    if (!fs::exists(name))
        throw UsageError(
            fmt::format("--baseline {} is neither 'source', a mix of llama-quantize such as Q4_K_M, nor a file", name));
    recipe = read_recipe(name);
    name = fs::path(name).stem().string();
    return recipe;
}

void check_same_tensors(const GgufFile& source, const GgufFile& baseline) {
    for (const auto* pair : {&source, &baseline}) {
        const auto& other = pair == &source ? baseline : source;
        for (const auto& tensor : pair->tensors()) {
            const auto* same = other.find(tensor.name);
            if (same == nullptr || same->shape != tensor.shape)
                throw Error(fmt::format("{} cannot be the baseline of {}: {} {}", baseline.path().string(),
                                        source.path().string(), tensor.name,
                                        same == nullptr ? "is in one of them only" : "has another shape"));
        }
    }
}

/// The paths of what lies beside the journal carry the baseline's name, so that sweeps do not get in each other's way.
FromSource prepare(const RunOptions& run, std::string& name, Progress& progress) {
    RunOptions of_source = run;
    of_source.journal.replace_extension();
    of_source.journal += ".source.db";
    of_source.full = true;
    Session session(of_source, progress);
    const auto recipe = baseline_recipe(session, name);
    FromSource result;
    result.file = baseline_file(session, run, name, recipe, progress);
    session.text();
    result.kld = baseline_kld(session, result.file, progress);
    result.text = session.journal().get_artifact("text").value();
    result.imatrix = session.journal().get_artifact("imatrix").value();
    return result;
}

class Crusher {
  public:
    Crusher(Session& session, const RunOptions& run, const CrushOptions& options, Progress& progress)
        : session_(session),
          options_(options),
          progress_(progress),
          baseline_(GgufFile::open(run.baseline.empty() ? run.model : run.baseline)) {
        check_same_tensors(session.source(), baseline_);
    }

    CrushSweep run() {
        const auto plan = make_crush_plan();
        result_.summary = session_.measure(plan);
        const auto nll = baseline_nll();
        collect(plan, nll);
        describe(nll);
        return std::move(result_);
    }

  private:
    std::vector<std::string> wanted() {
        if (options_.tensors.empty()) return session_.wanted_tensors();
        std::vector<std::string> names;
        for (const auto& name : options_.tensors) {
            const auto& source = session_.source();
            if (source.find(name) == nullptr && source.find(name + ".weight") == nullptr)
                throw Error(
                    fmt::format("the plan names the tensor {}, which {} does not have", name, source.path().string()));
            names.push_back(source.find(name) != nullptr ? name : name + ".weight");
            if (std::ranges::count(names, names.back()) > 1)
                throw Error(fmt::format("the plan names the tensor {} twice", names.back()));
        }
        return names;
    }

    /// Why a tensor cannot be crushed; empty where it can.
    std::string obstacle(const std::string& name, const std::set<std::string>& quantizable) {
        const auto& tensor = *baseline_.find(name);
        const auto crush = options_.crush;
        if (!quantizable.contains(name)) return "llama-quantize does not quantize it";
        if (tensor.type == crush) return fmt::format("it is {} in the baseline already", type_name(crush));
        if (!type_fits_row(crush, tensor.row_length()))
            return fmt::format("its rows of {} weights do not fit {}", tensor.row_length(), type_name(crush));
        if (type_size_bytes(crush, tensor.row_length(), tensor.n_rows()) >= tensor.size_bytes)
            return fmt::format("it is {} in the baseline, smaller than {}", type_name(tensor.type), type_name(crush));
        if (type_needs_imatrix(crush) && !session_.imatrix().entries.contains(name))
            return fmt::format("ggml does not make {} without an importance matrix, which has no entry for it",
                               type_name(crush));
        return session_.why_unmeasurable(name);
    }

    std::vector<TensorPlan> make_crush_plan() {
        const auto& names = session_.quantizable();
        const std::set<std::string> quantizable(names.begin(), names.end());
        std::vector<TensorPlan> plan;
        std::size_t already = 0;
        const auto all = wanted();
        for (const auto& name : all) {
            const auto reason = obstacle(name, quantizable);
            if (reason.empty())
                plan.push_back({name, {options_.crush}, {options_.crush}, 1});
            else
                result_.skipped.push_back({name, reason});
            already += baseline_.find(name)->type == options_.crush ? 1 : 0;
        }
        if (plan.empty() && already == all.size())
            throw Error(
                fmt::format("there is nothing to crush: all {} tensors are {} in {} already; choose another "
                            "--crush or another baseline",
                            all.size(), type_name(options_.crush), baseline_.path().string()));
        if (plan.empty())
            throw Error(fmt::format("there is nothing to crush: {}: {}", result_.skipped.front().tensor,
                                    result_.skipped.front().reason));
        return plan;
    }

    /// Negative log-likelihood of the baseline on every measured window, summed over the scored positions.
    Figures baseline_nll() {
        std::vector<WindowScore> scores;
        if (const auto stored = session_.journal().get_artifact("baseline_nll")) {
            constexpr std::string_view where = "the likelihood of the baseline in the journal";
            for (const auto& value : parse_json(*stored, where)) {
                WindowScore score;
                std::tie(score.count, score.nll) = pair_of(value, where);
                score.reference_nll = score.nll;
                scores.push_back(score);
            }
            return summarize(scores);
        }
        const auto windows = session_.measured_windows();
        if (session_.replays()) {
            const std::vector<TypeMap> itself(1);
            scores =
                replay_recipes(session_.engine(), session_.prepare(windows), itself, session_.quantizer(), progress_)
                    .front();
        } else {
            const std::vector<fs::path> itself = {session_.model().path()};
            scores =
                score_files(session_.model(), itself, windows, session_.threads(), progress_, session_.place()).front();
        }
        auto stored = json::array();
        for (auto& score : scores) {
            stored.push_back({score.count, score.reference_nll});
            score.nll = score.reference_nll;
        }
        session_.journal().put_artifact("baseline_nll", json_to_text(stored));
        return summarize(scores);
    }

    void collect(const std::vector<TensorPlan>& plan, const Figures& baseline) {
        std::map<std::string, const Measurement*> rows;
        const auto measurements = session_.journal().measurements();
        for (const auto& m : measurements)
            if (m.tier == Tier::full && m.type == type_name(options_.crush)) rows[m.tensor] = &m;
        for (const auto& entry : plan) {
            const auto row = rows.find(entry.name);
            if (row == rows.end()) continue;
            CrushedTensor crushed;
            crushed.tensor = entry.name;
            crushed.base_type = baseline_.find(entry.name)->type;
            crushed.kld = clustered_mean(row->second->kld, row->second->counts);
            crushed.delta_nll = clustered_mean(row->second->delta_nll, row->second->counts);
            crushed.perplexity = std::exp(baseline.nll.mean + crushed.delta_nll.mean);
            result_.windows = row->second->counts.size();
            result_.tensors.push_back(std::move(crushed));
        }
    }

    void describe(const Figures& baseline) {
        const auto& source = session_.source();
        result_.model = source.path().filename().string();
        result_.fingerprint = source.fingerprint();
        result_.crush = options_.crush;
        result_.baseline_perplexity = baseline.perplexity;
        result_.tokens = baseline.tokens;
        result_.text = session_.text().description;
        result_.fixed_bytes = longest_fixed_bytes(source);
        result_.model_tensors = baseline_.tensors();
        result_.source_types = complete_types(source, {});
    }

    Session& session_;
    const CrushOptions& options_;
    Progress& progress_;
    GgufFile baseline_;
    CrushSweep result_;
};

json error_of(const Estimate& estimate) {
    return std::isfinite(estimate.error) ? json(estimate.error) : json();
}

}  // namespace

CrushSweep crush_sweep(RunOptions run, const CrushOptions& options, Progress& progress) {
    std::string name = options.baseline;
    std::optional<FromSource> from_source;
    bool foreign = false;
    run.full = true;
    if (name != "source") {
        if (fs::exists(name) && has_gguf_magic(name)) {
            foreign = true;
            run.baseline = name;
            name = fs::path(name).filename().string();
            check_same_tensors(GgufFile::open(run.model), GgufFile::open(run.baseline));
            // The file alone: it is source and baseline at once.
            if (fs::equivalent(run.baseline, run.model)) run.baseline.clear();
        } else {
            from_source = prepare(run, name, progress);
            run.baseline = from_source->file;
        }
        run.baseline_name = name;
    }
    Session session(run, progress);
    if (from_source) {
        // Both run on the same text, with the same importance matrix.
        if (!session.journal().get_artifact("text")) session.journal().put_artifact("text", from_source->text);
        if (!session.journal().get_artifact("imatrix")) session.journal().put_artifact("imatrix", from_source->imatrix);
    }
    if (foreign && !run.baseline.empty() && !session.replays())
        throw Error(
            fmt::format("{} cannot be replayed, and through whole files a foreign baseline is measured only "
                        "with its own data: leave the source out",
                        run.baseline.string()));
    auto result = Crusher(session, run, options, progress).run();
    result.baseline = name;
    if (from_source) result.baseline_kld = from_source->kld;
    return result;
}

json ablation_json(const CrushSweep& sweep) {
    json tests = json::object(), tensors = json::object(), skipped = json::array();
    for (const auto& crushed : sweep.tensors)
        tests[crushed.tensor] = {{"gguf_tensor", crushed.tensor},
                                 {"ppl", crushed.perplexity},
                                 {"type", type_name(sweep.crush)},
                                 {"base_type", type_name(crushed.base_type)},
                                 {"kld", crushed.kld.mean},
                                 {"kld_error", error_of(crushed.kld)},
                                 {"delta_nll", crushed.delta_nll.mean},
                                 {"delta_nll_error", error_of(crushed.delta_nll)}};
    for (const auto& tensor : sweep.model_tensors)
        tensors[tensor.name] = {
            {"shape", std::vector<std::int64_t>(tensor.shape.begin(), tensor.shape.begin() + tensor.n_dims)},
            {"type", type_name(tensor.type)},
            {"source_type", type_name(sweep.source_types.at(tensor.name))}};
    for (const auto& tensor : sweep.skipped)
        skipped.push_back({{"gguf_tensor", tensor.tensor}, {"reason", tensor.reason}});
    json document = {{"cerebellum", CEREBELLUM_VERSION},
                     {"llama.cpp", CEREBELLUM_LLAMA_VERSION},
                     {"baseline", sweep.baseline},
                     {"baseline_ppl", sweep.baseline_perplexity},
                     {"crush_type", type_name(sweep.crush)},
                     {"text", sweep.text},
                     {"tokens", sweep.tokens},
                     {"windows", sweep.windows},
                     {"tests", std::move(tests)},
                     {"skipped", std::move(skipped)},
                     {"model",
                      {{"name", sweep.model},
                       {"fingerprint", sweep.fingerprint},
                       {"fixed_bytes", sweep.fixed_bytes},
                       {"tensors", std::move(tensors)}}}};
    if (sweep.baseline_kld)
        document["baseline_kld"] = {{"mean", sweep.baseline_kld->mean}, {"error", error_of(*sweep.baseline_kld)}};
    return document;
}

}  // namespace cerebellum
