#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <nlohmann/json.hpp>

#include "cerebellum/build/compare.h"
#include "cerebellum/cli/commands.h"
#include "cerebellum/cli/options.h"
#include "cerebellum/cli/terminal.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/parallel.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/report/table.h"

namespace cerebellum::cli {

namespace {

struct Values {
    CommonOptions common;
    std::string second;
    bool diffable = false;
    bool all = false;
};

std::string describe(const std::optional<TensorInfo>& tensor) {
    if (!tensor) return "-";
    return fmt::format("{} {}", type_name(tensor->type),
                       fmt::join(tensor->shape.begin(), tensor->shape.begin() + tensor->n_dims, "x"));
}

nlohmann::json number(const std::optional<double>& value) {
    return value && std::isfinite(*value) ? nlohmann::json(*value) : nlohmann::json(nullptr);
}

nlohmann::json to_json(const Comparison& comparison) {
    auto keys = nlohmann::json::array(), tensors = nlohmann::json::array();
    const auto text = [](const std::optional<std::string>& value) {
        return value ? nlohmann::json(*value) : nlohmann::json(nullptr);
    };
    const auto type = [](const std::optional<TensorInfo>& tensor) {
        return tensor ? nlohmann::json(type_name(tensor->type)) : nlohmann::json(nullptr);
    };
    for (const auto& key : comparison.keys)
        keys.push_back({{"key", key.key}, {"first", text(key.first)}, {"second", text(key.second)}});
    for (const auto& tensor : comparison.tensors)
        tensors.push_back({{"name", tensor.name},
                           {"first", type(tensor.first)},
                           {"second", type(tensor.second)},
                           {"same_bytes", tensor.same_bytes},
                           {"relative_error", number(tensor.relative_error)},
                           {"largest_difference", number(tensor.largest_difference)}});
    return {{"identical", comparison.identical()},
            {"same_order", comparison.same_order},
            {"keys", keys},
            {"tensors", tensors}};
}

void print(const Comparison& comparison, bool all) {
    for (const auto& key : comparison.keys)
        fmt::print("{}: {} | {}\n", key.key, key.first.value_or("-"), key.second.value_or("-"));
    std::vector<std::vector<std::string>> rows;
    std::size_t same = 0;
    for (const auto& tensor : comparison.tensors) {
        same += tensor.same_bytes;
        if (tensor.same_bytes && !all) continue;
        rows.push_back({tensor.name, describe(tensor.first), describe(tensor.second),
                        tensor.relative_error ? fmt::format("{:.3e}", *tensor.relative_error) : "-",
                        tensor.largest_difference ? fmt::format("{:.3e}", *tensor.largest_difference) : "-"});
    }
    if (!comparison.keys.empty()) fmt::print("\n");
    if (!rows.empty())
        fmt::print("{}\n", format_table({"tensor", "first", "second", "relative error", "largest difference"}, rows));
    fmt::print("{} of {} tensors are the same, {} keys differ{}\n", same, comparison.tensors.size(),
               comparison.keys.size(), comparison.same_order ? "" : "; the tensors lie in another order");
}

/// What diff(1) would say of the two listings, which are sorted.
void print_listing(const std::vector<std::string>& first, const std::vector<std::string>& second) {
    std::vector<std::string> only_first, only_second;
    std::ranges::set_difference(first, second, std::back_inserter(only_first));
    std::ranges::set_difference(second, first, std::back_inserter(only_second));
    for (const auto& line : only_first) fmt::print("- {}\n", line);
    for (const auto& line : only_second) fmt::print("+ {}\n", line);
}

int run(const Values& values) {
    TerminalProgress progress(values.common.quiet, values.common.verbose);
    const auto first = GgufFile::open(values.common.model);
    if (values.second.empty()) {
        if (!values.diffable) throw UsageError("compare needs two files, or --diffable to list one");
        for (const auto& line : diffable_listing(first, progress)) fmt::print("{}\n", line);
        return 0;
    }
    const auto second = GgufFile::open(values.second);
    if (values.diffable) {
        print_listing(diffable_listing(first, progress), diffable_listing(second, progress));
        return 0;
    }
    const int threads = values.common.threads > 0 ? values.common.threads : physical_cores();
    const auto comparison = compare_gguf(first, second, threads, progress);
    if (values.common.json)
        fmt::print("{}\n", json_to_text(to_json(comparison), 2));
    else
        print(comparison, values.all);
    return 0;
}

}  // namespace

Command add_compare(CLI::App& app) {
    auto values = std::make_shared<Values>();
    auto* command = app.add_subcommand("compare", "Show how two GGUF files differ: metadata, types, weights");
    command->footer(
        "Examples:\n"
        "  cerebellum compare model-f16.gguf model-small.gguf\n"
        "  diff <(cerebellum compare a.gguf --diffable) <(cerebellum compare b.gguf --diffable)\n\n"
        "The relative error of a tensor is |second - first| / |first| over its weights as numbers. Split models are\n"
        "named by their first file. --diffable prints one sorted line per key and per tensor, with a digest of its\n"
        "data; of two files, the lines that only one of them has.");
    command->add_option("first", values->common.model, "A GGUF file")->required()->type_name("A.gguf");
    command->add_option("second", values->second, "Another one")->type_name("B.gguf");
    command->add_flag("--all", values->all, "List the tensors that are the same, too");
    command->add_flag("--diffable", values->diffable, "Print sorted lines for diff");
    add_threads(*command, values->common);
    add_json(*command, values->common);
    return [values] { return run(*values); };
}

}  // namespace cerebellum::cli
