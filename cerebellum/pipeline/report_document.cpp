#include "cerebellum/pipeline/report_document.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/quoting.h"
#include "cerebellum/core/tensor_name.h"
#include "cerebellum/core/visible_text.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/journal/digest.h"
#include "cerebellum/journal/journal.h"
#include "cerebellum/llama/presets.h"
#include "cerebellum/pipeline/allocation.h"
#include "cerebellum/pipeline/effort.h"
#include "cerebellum/pipeline/file_records.h"
#include "cerebellum/pipeline/frontier_report.h"
#include "cerebellum/pipeline/interactions.h"
#include "cerebellum/pipeline/measured_model.h"
#include "cerebellum/pipeline/mix_scores.h"
#include "cerebellum/pipeline/session.h"
#include "cerebellum/pipeline/unusable.h"
#include "cerebellum/pipeline/whole_prediction.h"
#include "cerebellum/predict/classes.h"
#include "cerebellum/predict/curve.h"
#include "cerebellum/report/html_report.h"
#include "cerebellum/version.h"

namespace cerebellum {

namespace {

using nlohmann::json;

/// What is shown and not computed with: four digits do, and keep the page small. Null where it is no finite number.
json shown(double value) {
    if (!std::isfinite(value)) return nullptr;
    return std::stod(fmt::format("{:.4g}", value));
}

json shown(const Estimate& estimate) {
    return {{"mean", shown(estimate.mean)}, {"error", shown(estimate.error)}};
}

/// Types and tensors are numbers in the document: their place in its lists.
class Numbering {
  public:
    explicit Numbering(std::span<const TensorInfo> tensors) {
        for (const auto& tensor : tensors) tensors_.emplace(tensor.name, tensors_.size());
    }
    std::size_t type(const Encoding& type) {
        const auto [entry, is_new] = types_.emplace(type, list_.size());
        if (is_new) list_.push_back({{"name", type_name(type)}, {"bits", bits_per_weight(type.type)}});
        return entry->second;
    }
    /// Throws Error for a name that a journal or recipe has and the model has not.
    std::size_t tensor(const std::string& name) const {
        const auto found = tensors_.find(name);
        if (found == tensors_.end())
            throw Error(
                fmt::format("the model has no tensor {}, which there are figures of; measure again", visible(name)));
        return found->second;
    }
    bool has_tensor(const std::string& name) const { return tensors_.contains(name); }
    const json& types() const { return list_; }

  private:
    std::map<std::string, std::size_t> tensors_;
    std::map<Encoding, std::size_t> types_;
    json list_ = json::array();
};

/// The opened sources.
struct Opened {
    std::optional<MeasuredModel> measured;  // with a model
    std::optional<Journal> alone;           // without
    std::optional<Recipe> recipe;
    std::vector<TensorInfo> tensors;
    bool exact_bytes = true;    // the size of everything beside tensors is known
    AllocationProblem problem;  // under the aim, before constraints
    AllocationProblem in_kld;   // under the aim's profile

    const Journal& journal() const { return measured ? measured->journal : *alone; }
};

/// What the recipe's file takes beside its tensors; empty where the recipe does not say.
std::optional<std::uint64_t> header_bytes(const Recipe& recipe, std::span<const TensorInfo> tensors) {
    const auto metadata = recipe.provenance.find(metadata_key);
    if (recipe.file_bytes == 0 || metadata != recipe.provenance.end()) return std::nullopt;
    std::uint64_t data_bytes = 0;
    for (const auto& tensor : tensors) {
        const auto named = recipe.types.find(tensor.name);
        data_bytes += tensor_bytes(tensor, named == recipe.types.end() ? tensor.type : named->second.type);
    }
    if (data_bytes >= recipe.file_bytes) return std::nullopt;
    return recipe.file_bytes - data_bytes;
}

Opened open(const ReportSources& sources) {
    Opened opened;
    const Aim in_kld{Objective::kld, sources.aim.profile};
    if (sources.recipe) opened.recipe = read_recipe(*sources.recipe);
    if (sources.model) {
        opened.measured = open_measured(*sources.model, sources.journal, sources.aim);
        const auto& source = opened.measured->source;
        opened.tensors.assign(source.tensors().begin(), source.tensors().end());
        opened.problem = opened.measured->problem;
        const auto measurements = weighed_measurements(opened.journal(), in_kld);
        std::uint64_t header = opened.problem.fixed_bytes;
        std::set<std::string> decided;
        for (const auto& tensor : opened.problem.tensors) decided.insert(tensor.name);
        for (const auto& tensor : opened.tensors)
            if (!decided.contains(tensor.name)) header -= tensor_bytes(tensor, tensor.type);
        opened.in_kld = make_problem(opened.tensors, header, measurements, Objective::kld);
    } else {
        opened.alone = Journal::open_existing(sources.journal);
        if (opened.alone->measurements().empty())
            throw Error(
                fmt::format("{} holds no measurements; run 'cerebellum ablate' first", sources.journal.string()));
        opened.tensors = tensors_from_journal(*opened.alone);
        const auto header = opened.recipe ? header_bytes(*opened.recipe, opened.tensors) : std::nullopt;
        opened.exact_bytes = header.has_value();
        const std::uint64_t fixed = header ? *header : 0;
        opened.problem = make_problem(opened.tensors, fixed, weighed_measurements(*opened.alone, sources.aim),
                                      sources.aim.objective, sources.aim.rounding);
        keep_types(opened.problem, sources.aim.types);
        opened.in_kld =
            make_problem(opened.tensors, fixed, weighed_measurements(*opened.alone, in_kld), Objective::kld);
    }
    const auto& identity = opened.journal().identity().fields;
    if (opened.recipe && !opened.recipe->source_fingerprint.empty() && identity.contains("model") &&
        identity.at("model") != opened.recipe->source_fingerprint)
        throw Error(fmt::format("{} is a recipe for another model than {} was measured on; name the right one",
                                sources.recipe->string(), sources.journal.string()));
    return opened;
}

json tensor_list(std::span<const TensorInfo> tensors, Numbering& numbering) {
    auto list = json::array();
    for (const auto& tensor : tensors) {
        const auto block = block_of(tensor.name);
        // "^blk\.0\.attn_q\.weight$=f16\n": the page completes the line with another type.
        const auto line = tensor_type_file({{tensor.name, tensor.type}});
        list.push_back({{"name", tensor.name},
                        {"block", block ? json(*block) : json(nullptr)},
                        {"role", role_of(tensor.name)},
                        {"type", numbering.type(tensor.type)},
                        {"weights", tensor.n_weights()},
                        {"pattern", line.substr(0, line.rfind('=') + 1)}});
    }
    return list;
}

/// Every tensor's curve as rows of `damage_columns`.
constexpr const char* damage_columns[] = {"type",     "kld",     "lower",     "upper",           "full", "fitted",
                                          "on_curve", "windows", "delta_nll", "delta_nll_error", "top1", "change"};
json damages(std::span<const Measurement> measurements, Numbering& numbering) {
    std::map<std::pair<std::string, std::string>, const Measurement*> full, fast;
    for (const auto& m : measurements) (m.tier == Tier::full ? full : fast)[{m.tensor, m.type}] = &m;
    auto list = json::array();
    for (const auto& [name, curve] : fit_curves(measurements)) {
        if (!numbering.has_tensor(name)) continue;
        auto points = json::array();
        for (const auto& point : curve.points) {
            const std::pair key(name, point.damage.type);
            const auto in_full = full.find(key), in_fast = fast.find(key);
            const auto interval = damage_interval(point.damage);
            const bool is_full = point.damage.tier == Tier::full;
            json row = {numbering.type(point.type),
                        shown(point.damage.kld),
                        shown(interval.lower),
                        shown(interval.upper),
                        is_full ? 1 : 0,
                        shown(point.kld),
                        point.on_curve ? 1 : 0,
                        (is_full ? in_full : in_fast)->second->windows()};
            if (in_full != full.end()) {
                const auto& m = *in_full->second;
                const auto nll = clustered_mean(m.delta_nll, m.counts);
                row.insert(row.end(),
                           {shown(nll.mean), shown(nll.error), shown(clustered_mean(m.top1_agree, m.counts).mean)});
            } else {
                row.insert(row.end(), {nullptr, nullptr, nullptr});
            }
            row.push_back(
                in_fast == fast.end()
                    ? json(nullptr)
                    : shown(clustered_mean(in_fast->second->local_energy, in_fast->second->local_counts).mean));
            points.push_back(std::move(row));
        }
        list.push_back({{"tensor", numbering.tensor(name)}, {"points", std::move(points)}});
    }
    return list;
}

/// Damage in each domain of the text: rows [type, kld, lower, upper]. A domain in which some tensor was not measured
/// well enough for a prediction is left out.
json domains(const Journal& journal, Numbering& numbering) {
    auto list = json::array();
    const auto labels = measured_domains(journal);
    for (const auto& domain : std::set<std::string>(labels.begin(), labels.end())) {
        auto tensors = json::array();
        try {
            for (const auto& [name, of_types] :
                 predict_damage(weigh(journal.measurements(), {{domain, 1.0}}, labels))) {
                if (!numbering.has_tensor(name)) continue;
                auto points = json::array();
                for (const auto& damage : of_types) {
                    const auto interval = damage_interval(damage);
                    points.push_back({numbering.type(parse_encoding(damage.type).value()), shown(damage.kld),
                                      shown(interval.lower), shown(interval.upper)});
                }
                tensors.push_back({{"tensor", numbering.tensor(name)}, {"points", std::move(points)}});
            }
        } catch (const Error&) {
            continue;
        }
        list.push_back({{"name", domain}, {"damages", std::move(tensors)}});
    }
    return list;
}

json classes(std::span<const Measurement> measurements, std::span<const TensorInfo> tensors, Numbering& numbering) {
    std::vector<Measurement> known;
    for (const auto& m : measurements)
        if (numbering.has_tensor(m.tensor)) known.push_back(m);
    auto list = json::array();
    for (const auto& [name, c] : classify(known, bytes_saved_of(tensors))) {
        const auto interval = confidence_interval(c.kld);
        list.push_back({{"tensor", numbering.tensor(name)},
                        {"class", sensitivity_name(c.sensitivity)},
                        {"type", numbering.type(parse_encoding(c.type).value())},
                        {"windows", c.windows},
                        {"bytes_saved", c.bytes_saved},
                        {"kld", shown(c.kld.mean)},
                        {"lower", shown(std::max(0.0, interval.lower))},
                        {"upper", shown(interval.upper)},
                        {"share", shown(c.kld_share.mean)},
                        {"delta_nll", shown(c.delta_nll)},
                        {"p_sacred", shown(c.p_sacred)},
                        {"p_demotable", shown(c.p_demotable)},
                        {"q_safe", shown(c.q_safe)},
                        {"q_above", shown(c.q_above)}});
    }
    return list;
}

/// What the page allocates: groups of tensors with a type in common, and for each choice its bytes and cost. These are
/// computed with, so they are exact.
json allocation(const AllocationProblem& problem, const ReportSources& sources, bool exact_bytes,
                Numbering& numbering) {
    auto groups = json::array();
    for (const auto& group : groups_of(problem)) {
        auto members = json::array(), choices = json::array();
        for (const auto index : group.tensors) members.push_back(numbering.tensor(problem.tensors[index].name));
        for (const auto& choice : group.choices)
            choices.push_back({numbering.type(choice.type), choice.bytes, choice.cost});
        groups.push_back({{"tensors", std::move(members)}, {"choices", std::move(choices)}});
    }
    std::string constraints;
    for (const auto& constraint : sources.constraints.all) {
        // Of "--pin blk.*=q8_0" the page makes a command line.
        const auto value = constraint.text.find(' ') + 1;
        constraints += (constraints.empty() ? "" : " ") + constraint.text.substr(0, value);
        constraints += shell_word(constraint.text.substr(value));
    }
    std::string choices;
    if (sources.aim.rounding != RoundingChoice::automatic)
        choices = fmt::format("--rounding {}", rounding_choice_name(sources.aim.rounding));
    if (!sources.aim.types.empty()) {
        std::vector<std::string> names;
        for (const auto type : sources.aim.types) names.emplace_back(type_name(type));
        choices += fmt::format("{}--types {}", choices.empty() ? "" : " ", fmt::join(names, ","));
    }
    return {{"fixed_bytes", problem.fixed_bytes},    {"exact_bytes", exact_bytes},
            {"groups", std::move(groups)},           {"objective", objective_name(sources.aim.objective)},
            {"profile", sources.aim.profile},        {"max_types", sources.constraints.max_types},
            {"constraints", std::move(constraints)}, {"choices", std::move(choices)}};
}

std::uint64_t bytes_of(const AllocationProblem& problem, const TypeMap& types) {
    auto bytes = problem.fixed_bytes;
    for (const auto& tensor : problem.tensors) {
        const auto wanted = types.find(tensor.name);
        const auto choice = wanted == types.end()
                                ? tensor.choices.begin()
                                : std::ranges::find(tensor.choices, wanted->second, &TypeChoice::type);
        bytes += choice->bytes;
    }
    return bytes;
}

/// Predictions after calibration as rows [sum, mean, error], by rising sum: at all measured recipes and between.
json calibration_curve(const Calibration& calibration, std::span<const MeasuredWhole> wholes,
                       const AllocationProblem& problem) {
    if (calibration.empty()) return json::array();
    double largest = 0.0;
    for (const auto& tensor : problem.tensors) largest += std::ranges::max(tensor.choices, {}, &TypeChoice::cost).cost;
    std::set<double> sums;
    for (const auto& whole : wholes)
        if (whole.kind == "recipe" && whole.sum > 0.0) sums.insert(whole.sum);
    constexpr int steps = 60;
    constexpr double range = 1e-5;
    for (int i = 0; i <= steps && largest > 0.0; ++i)
        sums.insert(largest * std::pow(range, static_cast<double>(i) / steps));
    auto rows = json::array();
    for (const double sum : sums) {
        const auto predicted = calibration.predict(sum);
        rows.push_back({sum, shown(predicted.mean), shown(predicted.error)});
    }
    return rows;
}

/// Stock mixes by the types that they change.
std::map<TypeMap, std::string> stock_names(const GgufFile& source) {
    std::map<TypeMap, std::string> names;
    for (const auto& preset : stock_presets())
        names.emplace(
            changed_types(source, dry_run(source.path(), {.file_type = preset.file_type, .has_imatrix = true}).types),
            preset.name);
    return names;
}

json wholes_json(std::span<const MeasuredWhole> wholes, const Opened& opened) {
    const auto names = opened.measured ? stock_names(opened.measured->source) : std::map<TypeMap, std::string>();
    auto rows = json::array();
    for (const auto& whole : wholes) {
        const auto name = names.find(whole.types);
        rows.push_back({{"kind", whole.kind},
                        {"name", name == names.end() ? json(nullptr) : json(name->second)},
                        {"bytes", bytes_of(opened.in_kld, whole.types)},
                        {"sum", shown(whole.sum)},
                        {"kld", shown(whole.whole)}});
    }
    return rows;
}

json interactions_json(const Journal& journal) {
    auto rows = json::array();
    for (const auto& row : stored_interactions(journal))
        rows.push_back({{"kind", row.kind},
                        {"name", row.name},
                        {"tensors", row.types.size()},
                        {"parts", shown(row.parts)},
                        {"kld", shown(row.whole)},
                        {"ratio", shown(row.ratio)}});
    return rows;
}

json presets_json(const MeasuredModel& measured, const Constraints& constraints) {
    auto rows = json::array();
    for (const auto& preset : make_frontier(measured, constraints).presets)
        rows.push_back({{"name", preset.name},
                        {"bytes", preset.bytes},
                        {"kld", preset.kld ? shown(*preset.kld) : json(nullptr)},
                        {"unmeasured", preset.unmeasured}});
    return rows;
}

json recipe_json(const Recipe& recipe, std::span<const TensorInfo> tensors, Numbering& numbering) {
    auto types = json::array();
    for (const auto& tensor : tensors) {
        const auto named = recipe.types.find(tensor.name);
        types.push_back(numbering.type(named == recipe.types.end() ? tensor.type : named->second));
    }
    return {{"types", std::move(types)},
            {"file_bytes", recipe.file_bytes},
            {"predicted_kld", shown(recipe.predicted_kld)},
            {"sha256", recipe_sha256(recipe)},
            {"provenance", recipe.provenance}};
}

/// Paths of the machine that made a result are nobody's business.
void drop_folders(json& value) {
    if (value.is_object())
        for (auto& [key, entry] : value.items()) {
            if (entry.is_string() && (key == "output" || key == "file" || key == "log"))
                entry = std::filesystem::path(entry.get<std::string>()).filename().string();
            else
                drop_folders(entry);
        }
    else if (value.is_array())
        for (auto& entry : value) drop_folders(entry);
}

json results_json(std::span<const std::filesystem::path> paths, const std::string& fingerprint) {
    auto list = json::array();
    for (const auto& path : paths) {
        auto content = try_parse_json(read_file(path), limits_of_long_json).value_or(json());
        if (!content.is_object())
            throw Error(fmt::format(
                "cannot use {}: it is no result of Cerebellum; give what quantize, verify or an evaluation stored",
                path.string()));
        check_source(content, path.string(), fingerprint);
        content.erase("groups");
        drop_folders(content);
        list.push_back({{"file", path.filename().string()}, {"content", std::move(content)}});
    }
    return list;
}

/// Of the model that was measured; empty where the journal does not say.
std::string fingerprint_of(const Journal& journal) {
    const auto& identity = journal.identity().fields;
    return identity.contains("model") ? identity.at("model") : "";
}

json model_json(const Opened& opened) {
    std::int64_t n_weights = 0;
    std::uint64_t data_bytes = 0;
    for (const auto& tensor : opened.tensors) {
        n_weights += tensor.n_weights();
        data_bytes += tensor.size_bytes;
    }
    const auto& identity = opened.journal().identity().fields;
    json model = {{"weights", n_weights},
                  {"bytes", data_bytes},
                  {"name", nullptr},
                  {"architecture", nullptr},
                  {"fingerprint", identity.contains("model") ? json(identity.at("model")) : json(nullptr)}};
    if (opened.recipe && !opened.recipe->source_name.empty()) model["name"] = opened.recipe->source_name;
    if (opened.measured) {
        model["name"] = opened.measured->source.path().filename().string();
        model["architecture"] = opened.measured->source.architecture();
        model["bytes"] = opened.measured->source.file_size();
    }
    return model;
}

}  // namespace

json report_document(const ReportSources& sources) {
    auto constraints = sources.constraints;
    constraints.max_types = 0;
    const auto opened = open(sources);
    const auto& journal = opened.journal();
    Numbering numbering(opened.tensors);
    const Aim in_kld{Objective::kld, sources.aim.profile};
    const auto measurements = weighed_measurements(journal, in_kld);
    const auto wholes = measured_wholes(opened.in_kld, journal, in_kld);
    json document = {
        {"format", "cerebellum-report"},
        {"version", 1},
        {"cerebellum", CEREBELLUM_VERSION},
        {"llama.cpp", CEREBELLUM_LLAMA_VERSION},
        {"model", model_json(opened)},
        {"tensors", tensor_list(opened.tensors, numbering)},
        {"damage_columns", damage_columns},
        {"damages", damages(measurements, numbering)},
        {"domains", domains(journal, numbering)},
        {"classes", classes(measurements, opened.tensors, numbering)},
        {"allocation",
         allocation(constrained_for_any_size(opened.problem, constraints), sources, opened.exact_bytes, numbering)},
        {"calibration", calibration_curve(make_calibration(opened.in_kld, journal, in_kld), wholes, opened.in_kld)},
        {"wholes", wholes_json(wholes, opened)},
        {"interactions", interactions_json(journal)},
        {"unusable", describe_unusable(journal)},
        {"presets", opened.measured ? presets_json(*opened.measured, constraints) : json::array()},
        {"recipe", opened.recipe ? recipe_json(*opened.recipe, opened.tensors, numbering) : json(nullptr)},
        {"results", results_json(sources.results, fingerprint_of(journal))}};
    document["journal"] = {{"file", sources.journal.filename().string()},
                           {"sha256", measurements_sha256(journal)},
                           {"identity", journal.identity().fields},
                           {"imatrix", journal.get_meta("imatrix_name").value_or("")},
                           {"null_floor_kld", journal.get_meta("null_floor_kld").value_or("")}};
    document["types"] = numbering.types();
    if (const auto effort = journal.identity().fields.find("effort"); effort != journal.identity().fields.end())
        document["label"] = effort_label(std::string_view(effort->second));
    return document;
}

std::uint64_t write_report(const std::filesystem::path& path, const ReportSources& sources) {
    const auto document = report_document(sources);
    const auto& name = document["model"]["name"];
    const auto page =
        html_report(document, name.is_string() ? name.get<std::string>() + " – Cerebellum" : "Cerebellum report");
    write_file_atomically(path, page);
    return page.size();
}

}  // namespace cerebellum
