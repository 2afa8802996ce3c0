#include "cerebellum/cli/allocate_imported.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/size.h"
#include "cerebellum/pipeline/import_allocation.h"
#include "cerebellum/pipeline/quantize.h"
#include "cerebellum/pipeline/run_files.h"
#include "cerebellum/predict/import_ablation.h"
#include "cerebellum/report/table.h"

namespace cerebellum::cli {

namespace fs = std::filesystem;

namespace {

/// What a sweep started from by default: the tool that made the schema says so in its manual.
constexpr const char* classical_base = "Q4_K_M";

ImportedModel find_model(const DamageTable& table, const ImportedValues& values, const GgufFile* file,
                         bool has_imatrix) {
    if (table.model) {
        if (!values.base.empty()) throw UsageError("--base: the file says itself what it was measured from");
        return imported_model(*table.model);
    }
    if (file != nullptr) {
        const bool quantized =
            std::ranges::any_of(file->tensors(), [](const auto& tensor) { return ggml_is_quantized(tensor.type); });
        const bool assume = table.is_crush_sweep && !quantized && values.base.empty();
        if (!table.is_crush_sweep && !values.base.empty())
            throw UsageError("--base: these measurements were made from the model in high precision");
        auto model = imported_model(*file, assume ? classical_base : values.base, has_imatrix);
        if (assume)
            model.notes.push_back(
                fmt::format("the file does not say what the sweep started from: taken as {}", classical_base));
        return model;
    }
    if (const auto maps = tensor_maps(values.source); !maps.empty()) return imported_model(read_tensor_maps(maps));
    throw Error(fmt::format("{} does not say how large the tensors are; give the model, or its header, with --model{}",
                            table.origin, table.is_crush_sweep ? "" : ", or a tensor map with --map"));
}

/// A plan says what there should be.
void check_plan(const std::string& path, const DamageTable& table) {
    if (path.empty()) return;
    std::set<std::string> known;
    for (const auto& row : table.rows) {
        known.insert(row.tensor);
        // A test's name, which plans may list too, stands in "test 'NAME'".
        if (const auto quote = row.where.find('\''); quote != std::string::npos)
            known.insert(row.where.substr(quote + 1, row.where.size() - quote - 2));
    }
    for (const auto& entry : table.skipped) known.insert(entry.substr(0, entry.find(": ")));
    for (const auto& name : read_ablation_plan(path))
        if (!known.contains(name) && !known.contains(name + ".weight"))
            throw Error(
                fmt::format("{} is not all of the plan {}: {} was not measured; finish the sweep, or leave "
                            "--plan out",
                            table.origin, path, name));
}

nlohmann::json to_json(const ImportedAllocation& result, std::uint64_t budget) {
    auto json = parse_json(recipe_to_json(result.recipe), "the recipe", limits_of_long_json);
    // Of a recipe this is the divergence of a file; here it is a change.
    json.erase("predicted_kld");
    json["metric"] = result.metric == Metric::kld ? "kld" : "ppl";
    json["predicted_change"] = result.recipe.predicted_kld;
    json["budget_bytes"] = budget;
    json["tensor_bytes"] = result.tensor_bytes;
    json["optimal"] = result.optimal;
    json["measured"] = result.measured;
    json["extrapolated"] = result.extrapolated;
    json["unmeasured"] = result.unmeasured;
    json["at_crush_type"] = result.at_crush_type;
    json["notes"] = result.notes;
    return json;
}

std::string describe(const ImportedAllocation& result, const ImportedModel& model, std::uint64_t budget) {
    std::map<std::string, std::pair<int, std::uint64_t>> by_type;
    for (const auto& tensor : model.base.tensors) {
        auto& [count, bytes] = by_type[type_name(result.recipe.types.at(tensor.name))];
        ++count;
        bytes += tensor_bytes(tensor, result.recipe.types.at(tensor.name).type);
    }
    std::vector<std::vector<std::string>> rows;
    for (const auto& [type, entry] : by_type)
        rows.push_back({type, std::to_string(entry.first), format_bytes(entry.second)});
    auto text = format_table({"type", "tensors", "bytes"}, rows);
    text += fmt::format("{} bytes of {}, predicted {} from the baseline {:+.5f} nats per token ({})\n",
                        result.recipe.file_bytes, budget,
                        result.metric == Metric::kld ? "change of the KLD" : "loss of log-likelihood",
                        result.recipe.predicted_kld, result.optimal ? "optimal" : "not proved optimal");
    text += fmt::format("{} tensors measured, {} extrapolated, {} not measured\n", result.measured,
                        result.extrapolated.size(), result.unmeasured.size());
    const auto list = [&](const char* what, const std::vector<std::string>& names) {
        for (const auto& name : names) text += fmt::format("{}: {}\n", what, name);
    };
    list("skipped, in the crush type already", result.at_crush_type);
    list("keeps its base type, not measured", result.unmeasured);
    list("extrapolated from its block", result.extrapolated);
    list("note", result.notes);
    return text;
}

SizeGoal wanted_size(const GoalOptions& goal, const ImportedValues& values) {
    const bool other = goal.max_kld > 0.0 || !goal.vram.empty() || !goal.gpu_size.empty() || !goal.cpu_size.empty();
    const int sizes = !goal.size.empty() + !goal.bpw.empty() + !values.budget_gb.empty();
    if (other || sizes != 1)
        throw UsageError("imported measurements are allocated for one size; give one of --size, --bpw and --budget");
    if (values.budget_gb.empty()) return goal_of(goal).size;
    const bool plain = values.budget_gb.find_first_not_of("0123456789.") == std::string::npos;
    return parse_size(plain ? values.budget_gb + "GB" : values.budget_gb);
}

}  // namespace

void add_imported(CLI::App& command, CommonOptions& common, ImportedValues& values) {
    command
        .add_option("model,--model,--source-gguf", common.model,
                    "The source: a GGUF model in high precision. For imported measurements its header is enough")
        ->type_name("MODEL.gguf");
    command
        .add_option("--ablation", values.source.ablation,
                    "Allocate from this ablation_results.json instead of a journal; the output is then a type file for "
                    "llama-quantize, or a recipe if it is called .json")
        ->type_name("FILE");
    command
        .add_option("--sensitivity", values.source.sensitivity,
                    "The same from per-tensor measurements of the GGUF-Tool-Suite: a folder or a CSV file")
        ->type_name("PATH");
    add_import_source(command, values.source);
    add_types(command, common);
    command
        .add_option("--imatrix", common.imatrix,
                    "Imported measurements: the importance matrix (GGUF) that the file will be quantized with; without "
                    "one, types that need it are not used")
        ->type_name("FILE");
    command
        .add_option("--budget,--budget-gb", values.budget_gb,
                    "Imported measurements: size of the file in GB, as --size 12GB")
        ->type_name("GB");
    command
        .add_option("--base,--base-type", values.base,
                    "What the imported sweep started from, and what tensors keep that it did not measure: a mix, a "
                    "type or a recipe.json (default: the model's types if it is quantized, else Q4_K_M)")
        ->type_name("BASE");
    command
        .add_option("--extrapolate", values.extrapolate,
                    "layer: tensors that were not measured are taken to be as sensitive as the rest of their block")
        ->check(CLI::IsMember({"layer"}));
    command.add_option("--plan", values.plan, "The sweep's plan: refuse measurements that are not all of it")
        ->type_name("FILE");
}

int allocate_from_import(const CommonOptions& common, const ImportedValues& values, const GoalOptions& wanted,
                         const std::string& output) {
    const auto goal = wanted_size(wanted, values);
    const bool is_recipe = output.ends_with(".json");
    OutputGuard guard(common.force);
    guard.writes("the output", output);
    if (is_recipe) guard.writes("the type file beside the recipe", type_file_path(output));
    guard_model(guard, "the model", common.model);
    guard.reads("the importance matrix", common.imatrix).reads("the plan", values.plan).reads("the base", values.base);
    guard_import(guard, values.source);
    const auto lock = guard.lock();
    const auto file = common.model.empty() ? std::nullopt : std::optional(GgufFile::open_header(common.model));
    const auto imatrix = common.imatrix.empty() ? std::nullopt : std::optional(read_imatrix(common.imatrix));
    const auto table = read_measurements(values.source, file ? &*file : nullptr);
    check_plan(values.plan, table);
    const auto model = find_model(table, values, file ? &*file : nullptr, imatrix.has_value());
    ImportOptions options;
    options.types = parse_types(common.types);
    options.extrapolate_layer = !values.extrapolate.empty();
    options.imatrix = imatrix ? &*imatrix : nullptr;
    std::uint64_t weights = 0;
    for (const auto& tensor : model.base.tensors) weights += static_cast<std::uint64_t>(tensor.n_weights());
    options.budget_bytes = goal.bytes(weights);
    const auto result = allocate_imported(table, model, options);
    const auto type_file = tensor_type_file(result.recipe.types);
    if (is_recipe) {
        write_recipe(output, result.recipe);
        write_file_atomically(type_file_path(output), type_file);
    } else {
        write_file_atomically(output, type_file);
    }
    if (common.json)
        fmt::print("{}\n", json_to_text(to_json(result, options.budget_bytes), 1));
    else
        fmt::print("{}", describe(result, model, options.budget_bytes));
    return 0;
}

}  // namespace cerebellum::cli
