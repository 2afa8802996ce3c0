#include "cerebellum/pipeline/card_facts.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <span>

#include "cerebellum/build/recipe.h"
#include "cerebellum/core/digest_memory.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/tensor_name.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/journal/digest.h"
#include "cerebellum/pipeline/allocation.h"
#include "cerebellum/pipeline/file_records.h"
#include "cerebellum/pipeline/interactions.h"
#include "cerebellum/pipeline/quantize.h"
#include "cerebellum/pipeline/session.h"
#include "cerebellum/pipeline/whole_prediction.h"
#include "cerebellum/predict/classes.h"
#include "cerebellum/version.h"

namespace cerebellum {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

/// Of all files of a split model one behind the other, called as the first one is.
json hashed(std::span<const fs::path> paths, Progress& progress) {
    const auto& path = paths.front();
    std::uint64_t bytes = 0;
    for (const auto& part : paths) {
        std::error_code error;
        bytes += fs::file_size(part, error);
        if (error) throw Error(fmt::format("cannot read {}: {}", part.string(), error.message()));
    }
    return {{"name", path.filename().string()}, {"bytes", bytes}, {"sha256", content_sha256(paths, progress)}};
}

json types_of(const GgufFile& file) {
    struct OfType {
        int tensors = 0;
        std::uint64_t bytes = 0;
        std::int64_t weights = 0;
        std::map<std::string, int> roles;
    };
    std::map<std::string, OfType> types;
    for (const auto& tensor : file.tensors()) {
        auto& of_type = types[type_name(tensor.type)];
        ++of_type.tensors;
        of_type.bytes += tensor.size_bytes;
        of_type.weights += tensor.n_weights();
        ++of_type.roles[role_of(tensor.name)];
    }
    std::vector<std::pair<std::string, OfType>> sorted(types.begin(), types.end());
    std::ranges::stable_sort(sorted, std::greater{}, [](const auto& each) { return each.second.bytes; });
    auto list = json::array();
    for (const auto& [name, of_type] : sorted)
        list.push_back({{"type", name},
                        {"tensors", of_type.tensors},
                        {"bytes", of_type.bytes},
                        {"weights", of_type.weights},
                        {"roles", of_type.roles}});
    return list;
}

/// "Organisation/Name" of the models that the metadata says this one was made from.
std::vector<std::string> base_models_of(const GgufFile& file) {
    std::vector<std::string> models;
    const auto count = file.uint_value("general.base_model.count").value_or(0);
    for (std::uint64_t i = 0; i < std::min<std::uint64_t>(count, 16); ++i) {
        const auto key = [&](const char* what) { return fmt::format("general.base_model.{}.{}", i, what); };
        if (const auto url = file.string_value(key("repo_url"))) {
            const auto last = url->rfind('/'),
                       before = last == 0 || last == std::string::npos ? std::string::npos : url->rfind('/', last - 1);
            if (before != std::string::npos) {
                models.push_back(url->substr(before + 1));
                continue;
            }
        }
        const auto organization = file.string_value(key("organization")), name = file.string_value(key("name"));
        if (!organization || !name) continue;
        auto id = *organization + "/" + *name;
        std::ranges::replace(id, ' ', '-');
        models.push_back(id);
    }
    return models;
}

json settings_of(const GgufFile& file, const CardSettings& settings) {
    json card = {{"pipeline_tag", "text-generation"}};
    const auto put = [&](const char* key, const std::string& given, const char* metadata) {
        if (!given.empty())
            card[key] = given;
        else if (const auto stored = file.string_value(metadata))
            card[key] = *stored;
    };
    put("license", settings.license, "general.license");
    put("license_link", settings.license_link, "general.license.link");
    put("quantized_by", settings.quantized_by, "general.quantized_by");
    card["language"] = settings.languages.empty() ? file.string_array("general.languages") : settings.languages;
    card["base_model"] = settings.base_models.empty() ? base_models_of(file) : settings.base_models;
    std::vector<std::string> tags = {"gguf"};
    std::set<ggml_type> quantized;
    for (const auto& tensor : file.tensors())
        if (ggml_is_quantized(tensor.type)) quantized.insert(tensor.type);
    if (!quantized.empty()) tags.emplace_back("quantized");
    if (quantized.size() > 1) tags.emplace_back("mixed-precision");
    if (file.string_value("cerebellum.version")) tags.emplace_back("cerebellum");
    if (!quantized.empty()) card["base_model_relation"] = "quantized";
    for (const auto& more : {file.string_array("general.tags"), settings.tags})
        for (const auto& tag : more)
            if (std::ranges::find(tags, tag) == tags.end()) tags.push_back(tag);
    card["tags"] = tags;
    return card;
}

json number(double value) {
    return std::isfinite(value) ? json(value) : json();
}

struct Ratios {
    std::vector<double> values;

    void add(double ratio) {
        if (std::isfinite(ratio)) values.push_back(ratio);
    }
    json summary() {
        std::ranges::sort(values);
        return {{"count", values.size()},
                {"least", values.front()},
                {"median", values[values.size() / 2]},
                {"most", values.back()}};
    }
};

/// By kind of change: how much several do together against the sum of what each does alone.
json interactions_of(const Journal& journal, std::span<const TensorInfo> tensors,
                     std::span<const Measurement> measurements) {
    std::map<std::string, Ratios> ratios;
    for (const auto& interaction : stored_interactions(journal)) ratios[interaction.kind].add(interaction.ratio.mean);
    const auto problem = make_problem(tensors, 0, measurements, Objective::kld);
    for (const auto& whole : measured_wholes(problem, journal)) ratios["recipe"].add(whole.whole.mean / whole.sum);
    json result = json::object();
    for (auto& [kind, all] : ratios)
        if (!all.values.empty()) result[kind] = all.summary();
    return result;
}

/// Results, recipe and serving figures beside the file are to be about it. The recipe knows the source's name.
void check_companions(const fs::path& path, json& facts) {
    json results;
    if (const auto beside = results_path(path); fs::exists(beside)) {
        results = try_parse_json(read_file(beside), limits_of_long_json).value_or(json());
        check_record(results, beside.string(), facts);
    }
    if (const auto beside = recipe_path(path); fs::exists(beside)) {
        const auto recipe = read_recipe(beside);
        check_recipe_record(recipe, beside.string(), facts, results);
        facts["source"] = {{"name", recipe.source_name}, {"fingerprint", recipe.source_fingerprint}};
    }
}

}  // namespace

json card_facts(const fs::path& path, const CardSettings& settings, const std::vector<fs::path>& companions,
                Progress& progress) {
    const auto file = GgufFile::open(path);
    json facts = {{"format", "cerebellum-facts"},
                  {"version", 1},
                  {"name", path.stem().string()},
                  {"weights", file.n_weights()},
                  {"bpw", 8.0 * static_cast<double>(file.file_size()) / static_cast<double>(file.n_weights())},
                  {"architecture", file.architecture()},
                  {"types", types_of(file)},
                  {"card", settings_of(file, settings)},
                  {"commands", settings.commands},
                  {"cerebellum", CEREBELLUM_VERSION},
                  {"llama.cpp", CEREBELLUM_LLAMA_VERSION}};
    facts["file"] = hashed(file.paths(), progress);
    facts["files"] = json::array();
    if (file.paths().size() == 1)
        facts["files"].push_back(facts["file"]);
    else
        for (const auto& part : file.paths()) facts["files"].push_back(hashed({&part, 1}, progress));
    for (const auto& companion : companions)
        if (fs::exists(companion)) facts["files"].push_back(hashed({&companion, 1}, progress));
    facts["fingerprint"] = file.fingerprint(progress);
    for (const auto& [fact, key] :
         {std::pair{"recipe_sha256", "cerebellum.recipe_sha256"}, std::pair{"written_by", "cerebellum.version"}})
        if (const auto value = file.string_value(key)) facts[fact] = *value;
    facts["source"] = {{"name", file.string_value("general.name").value_or(path.stem().string())},
                       {"fingerprint", file.string_value("cerebellum.source_fingerprint").value_or("unknown")}};
    check_companions(path, facts);
    return facts;
}

json card_findings(const Journal& journal) {
    const auto measurements = journal.measurements();
    if (measurements.empty())
        throw Error(fmt::format("{} holds no measurements; run 'cerebellum ablate' first", journal.path().string()));
    const auto tensors = tensors_from_journal(journal);
    const auto classes = classify(measurements, bytes_saved_of(tensors));
    std::set<std::pair<std::string, std::string>> pairs, full;
    std::set<std::string> measured;
    for (const auto& row : measurements) {
        pairs.emplace(row.tensor, row.type);
        measured.insert(row.tensor);
        if (row.tier == Tier::full) full.emplace(row.tensor, row.type);
    }
    json counts = json::object();
    std::vector<std::pair<std::string, const Classification*>> order;
    for (const auto& [tensor, of_tensor] : classes) {
        const auto name = std::string(sensitivity_name(of_tensor.sensitivity));
        counts[name] = counts.value(name, 0) + 1;
        order.emplace_back(tensor, &of_tensor);
    }
    std::ranges::stable_sort(order, std::greater{}, [](const auto& each) { return each.second->kld.mean; });
    const auto rows = [&](bool most) {
        constexpr std::size_t shown = 8;
        auto list = json::array();
        for (std::size_t i = 0; i < std::min(shown, order.size()); ++i) {
            const auto& [tensor, of_tensor] = order[most ? i : order.size() - 1 - i];
            list.push_back({{"tensor", tensor},
                            {"type", of_tensor->type},
                            {"kld", of_tensor->kld.mean},
                            {"kld_error", number(of_tensor->kld.error)},
                            {"class", sensitivity_name(of_tensor->sensitivity)}});
        }
        return list;
    };
    return {{"format", "cerebellum-findings"},
            {"version", 1},
            {"journal_sha256", measurements_sha256(journal)},
            {"source_fingerprint",
             journal.identity().fields.contains("model") ? json(journal.identity().fields.at("model")) : json()},
            {"measured", {{"tensors", measured.size()}, {"pairs", pairs.size()}, {"full", full.size()}}},
            {"classes", counts},
            {"most_sensitive", rows(true)},
            {"least_sensitive", rows(false)},
            {"interactions", interactions_of(journal, tensors, measurements)},
            {"cerebellum", CEREBELLUM_VERSION}};
}

}  // namespace cerebellum
