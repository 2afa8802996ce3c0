#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "cerebellum/cli/commands.h"
#include "cerebellum/cli/import_source.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/predict/transfer.h"
#include "cerebellum/report/table.h"

namespace cerebellum::cli {

namespace fs = std::filesystem;

namespace {

nlohmann::json number(double value) {
    return std::isfinite(value) ? nlohmann::json(value) : nlohmann::json();
}

nlohmann::json to_json(const DamageTable& table) {
    auto rows = nlohmann::json::array();
    for (const auto& row : table.rows)
        rows.push_back({{"tensor", row.tensor},
                        {"type", row.type},
                        {"kld", number(row.kld)},
                        {"kld_error", number(row.kld_error)},
                        {"delta_nll", number(row.delta_nll)}});
    // What the rule of transfer takes the types for (docs/imports.md).
    std::map<std::string, double> rounding_errors;
    for (const auto& row : table.rows)
        if (!rounding_errors.contains(row.type))
            rounding_errors[row.type] = rounding_error(parse_foreign_type(row.type).value());
    return {{"file", table.origin},
            {"metric", table.metric == Metric::kld ? "kld" : "ppl"},
            {"rows", rows},
            {"rounding_errors", rounding_errors},
            {"missing", table.missing},
            {"unread", table.unread},
            {"skipped", table.skipped},
            {"notes", table.notes}};
}

std::string describe(const DamageTable& table) {
    struct OfType {
        std::vector<double> values;
        std::string largest;
    };
    std::map<std::string, OfType> types;
    std::set<std::string> tensors;
    for (const auto& row : table.rows) {
        auto& of_type = types[row.type];
        const double value = row.value(table.metric);
        if (of_type.values.empty() || value > *std::ranges::max_element(of_type.values)) of_type.largest = row.tensor;
        of_type.values.push_back(value);
        tensors.insert(row.tensor);
    }
    std::vector<std::vector<std::string>> rows;
    for (auto& [type, of_type] : types) {
        std::ranges::sort(of_type.values);
        rows.push_back({type, std::to_string(of_type.values.size()), fmt::format("{:.6f}", of_type.values.front()),
                        fmt::format("{:.6f}", of_type.values[of_type.values.size() / 2]),
                        fmt::format("{:.6f}", of_type.values.back()), of_type.largest});
    }
    auto text = format_table({"type", "tensors", "least", "median", "most", "of"}, rows);
    text += fmt::format("{}: {} tensors, {} in nats per token\n", table.origin, tensors.size(),
                        table.metric == Metric::kld ? "KLD" : "loss of log-likelihood");
    const auto list = [&](const char* what, const std::vector<std::string>& entries) {
        for (const auto& entry : entries) text += fmt::format("{}: {}\n", what, entry);
    };
    list("not measured", table.missing);
    list("not read when the model ran", table.unread);
    list("skipped", table.skipped);
    list("note", table.notes);
    return text;
}

}  // namespace

Command add_import(CLI::App& app) {
    struct Values {
        CommonOptions common;
        ImportSource source;
        std::string path;
    };
    auto values = std::make_shared<Values>();
    auto* command = app.add_subcommand("import", "Only read: check measurements made elsewhere and show them");
    command->footer(
        "Examples:\n  cerebellum import ablation_results.json --model model-f16.gguf\n"
        "  cerebellum import Qwen3-4B/kld_results.csv --json\n\n"
        "Reads ablation_results.json, and folders or CSV files of the GGUF-Tool-Suite; see docs/imports.md. 'allocate\n"
        "--ablation' and 'allocate --sensitivity' make a recipe of the same files.");
    command->add_option("path", values->path, "The measurements: a .json or .csv file, or a folder")
        ->required()
        ->type_name("PATH");
    command
        ->add_option("--model", values->common.model,
                     "A GGUF that every measured tensor has to be in; its header is enough")
        ->type_name("MODEL.gguf");
    add_import_source(*command, values->source);
    add_json(*command, values->common);
    return [values] {
        auto& source = values->source;
        (values->path.ends_with(".json") ? source.ablation : source.sensitivity) = values->path;
        const auto model =
            values->common.model.empty() ? std::nullopt : std::optional(GgufFile::open_header(values->common.model));
        const auto table = read_measurements(source, model ? &*model : nullptr);
        if (const auto maps = tensor_maps(source); !maps.empty()) {
            const auto list = read_tensor_maps(maps);
            check_names(
                table, [&](const std::string& name) { return list.find(name) != nullptr; }, list.origin);
        }
        if (values->common.json)
            fmt::print("{}\n", json_to_text(to_json(table), 1));
        else
            fmt::print("{}", describe(table));
        return 0;
    };
}

}  // namespace cerebellum::cli
