#include "cerebellum/pipeline/card_facts.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <span>

#include "cerebellum/build/recipe.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/hash.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/tensor_name.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/journal/digest.h"
#include "cerebellum/pipeline/allocation.h"
#include "cerebellum/pipeline/quantize.h"
#include "cerebellum/pipeline/session.h"
#include "cerebellum/predict/calibration.h"
#include "cerebellum/predict/classes.h"
#include "cerebellum/predict/damage.h"
#include "cerebellum/version.h"

namespace cerebellum {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

json hashed(const fs::path& path, Progress& progress) {
    std::error_code error;
    const auto bytes = fs::file_size(path, error);
    if (error) throw Error(fmt::format("cannot read {}: {}", path.string(), error.message()));
    progress.begin("hashing", static_cast<double>(bytes));
    auto hash = sha256_of_files({&path, 1}, [&](std::uint64_t done) {
        progress.check();
        progress.advance(static_cast<double>(done), path.filename().string());
    });
    progress.end();
    return {{"name", path.filename().string()}, {"bytes", bytes}, {"sha256", std::move(hash)}};
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
    std::vector<std::string> tags = {"gguf", "quantized", "mixed-precision", "cerebellum"};
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

/// KLD over all windows of what was measured of a tensor alone, with as many windows as the mix has.
std::optional<double> alone(const Journal& journal, const std::string& tensor, ggml_type type, std::size_t windows) {
    const auto total = [](const auto& row) { return clustered_mean(row.kld, row.counts).mean; };
    if (const auto row = journal.find(tensor, type_name(type), Tier::full); row && row->kld.size() == windows)
        return total(*row);
    if (const auto mix = journal.find_mix("measured", {{tensor, type}}); mix && mix->kld.size() == windows)
        return total(*mix);
    return std::nullopt;
}

json interactions_of(const Journal& journal, std::span<const TensorInfo> tensors,
                     std::span<const Measurement> measurements) {
    std::map<std::string, Ratios> ratios;
    const auto problem = make_problem(tensors, measurements);
    for (const auto& mix : journal.mixes("measured")) {
        const double whole = clustered_mean(mix.kld, mix.counts).mean;
        if (mix.kind == "recipe") {
            if (const auto sum = predicted_kld(problem, mix.types); sum && *sum > 0.0)
                ratios["whole recipes"].add(whole / *sum);
            continue;
        }
        if (mix.kind != "interaction" || mix.types.size() < 2) continue;
        double sum = 0.0;
        bool known = true;
        std::set<std::optional<int>> blocks;
        for (const auto& [tensor, type] : mix.types) {
            const auto part = alone(journal, tensor, type, mix.kld.size());
            known = known && part;
            sum += part.value_or(0.0);
            blocks.insert(block_of(tensor));
        }
        if (!known || !(sum > 0.0)) continue;
        ratios[blocks.size() > 1       ? "over blocks"
               : mix.types.size() == 2 ? "pairs in a block"
                                       : "whole blocks"]
            .add(whole / sum);
    }
    json result = json::object();
    for (auto& [kind, all] : ratios)
        if (!all.values.empty()) result[kind] = all.summary();
    return result;
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
    facts["file"] = hashed(path, progress);
    facts["files"] = json::array({facts["file"]});
    for (const auto& companion : companions)
        if (fs::exists(companion)) facts["files"].push_back(hashed(companion, progress));
    facts["source"] = {{"name", file.string_value("general.name").value_or(path.stem().string())},
                       {"fingerprint", file.string_value("cerebellum.source_fingerprint").value_or("unknown")}};
    if (const auto beside = recipe_path(path); fs::exists(beside)) {
        const auto recipe = read_recipe(beside);
        facts["source"] = {{"name", recipe.source_name}, {"fingerprint", recipe.source_fingerprint}};
    }
    return facts;
}

json card_findings(const Journal& journal) {
    const auto measurements = journal.measurements();
    if (measurements.empty())
        throw Error(fmt::format("{} holds no measurements; run 'cerebellum ablate' first", journal.path().string()));
    const auto tensors = tensors_from_journal(journal);
    std::map<std::string, const TensorInfo*> by_name;
    for (const auto& tensor : tensors) by_name[tensor.name] = &tensor;
    const auto classes = classify(measurements, [&](const std::string& name, ggml_type type) {
        const auto& tensor = *by_name.at(name);
        return static_cast<double>(tensor.size_bytes) -
               static_cast<double>(type_size_bytes(type, tensor.row_length(), tensor.n_rows()));
    });
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
            {"journal_sha256", measurements_sha256(journal.identity(), measurements)},
            {"measured", {{"tensors", measured.size()}, {"pairs", pairs.size()}, {"full", full.size()}}},
            {"classes", counts},
            {"most_sensitive", rows(true)},
            {"least_sensitive", rows(false)},
            {"interactions", interactions_of(journal, tensors, measurements)},
            {"cerebellum", CEREBELLUM_VERSION}};
}

}  // namespace cerebellum
