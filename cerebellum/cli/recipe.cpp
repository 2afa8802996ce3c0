#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <set>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/cli/commands.h"
#include "cerebellum/cli/options.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/size.h"
#include "cerebellum/pipeline/import_recipe.h"
#include "cerebellum/pipeline/run_files.h"
#include "cerebellum/report/table.h"

namespace cerebellum::cli {

namespace {

namespace fs = std::filesystem;

/// A recipe, or the types of a GGUF as one.
Recipe read_mix(const fs::path& path) {
    if (!has_gguf_magic(path)) return read_recipe(path);
    const auto gguf = GgufFile::open(path);
    Recipe recipe;
    for (const auto& tensor : gguf.tensors()) recipe.types[tensor.name] = tensor.type;
    recipe.file_bytes = gguf.file_size();
    return recipe;
}

struct Difference {
    std::string tensor;
    std::string first, second;  // types; empty where it is not named
};

std::vector<Difference> differences(const Recipe& a, const Recipe& b) {
    const auto name_of = [](const Recipe& recipe, const std::string& tensor) {
        const auto found = recipe.types.find(tensor);
        return found == recipe.types.end() ? std::string() : type_name(found->second);
    };
    std::set<std::string> tensors;
    for (const auto* recipe : {&a, &b})
        for (const auto& [tensor, type] : recipe->types) tensors.insert(tensor);
    std::vector<Difference> result;
    for (const auto& tensor : tensors)
        if (const auto first = name_of(a, tensor), second = name_of(b, tensor); first != second)
            result.push_back({tensor, first, second});
    return result;
}

struct DiffValues {
    std::string first, second;
    bool json = false;
};

int diff(const DiffValues& values) {
    const auto a = read_mix(values.first), b = read_mix(values.second);
    const auto changed = differences(a, b);
    std::map<std::string, std::pair<std::string, std::string>> provenance;
    for (const auto& [key, value] : a.provenance) provenance[key].first = value;
    for (const auto& [key, value] : b.provenance) provenance[key].second = value;
    const bool same_scaling = a.scaling == b.scaling;
    std::erase_if(provenance, [](const auto& entry) { return entry.second.first == entry.second.second; });
    if (values.json) {
        auto tensors = nlohmann::json::array();
        for (const auto& d : changed)
            tensors.push_back({{"tensor", d.tensor}, {"first", d.first}, {"second", d.second}});
        nlohmann::json keys = nlohmann::json::object();
        for (const auto& [key, pair] : provenance) keys[key] = {pair.first, pair.second};
        fmt::print("{}\n", json_to_text(nlohmann::json{{"tensors", tensors},
                                                       {"provenance", keys},
                                                       {"same_scaling", same_scaling},
                                                       {"file_bytes", {a.file_bytes, b.file_bytes}},
                                                       {"same_source", a.source_fingerprint == b.source_fingerprint}},
                                        2));
        return changed.empty() && same_scaling ? 0 : 1;
    }
    std::vector<std::vector<std::string>> rows;
    const auto shown = [](const std::string& type) { return type.empty() ? std::string("-") : type; };
    for (const auto& d : changed) rows.push_back({d.tensor, shown(d.first), shown(d.second)});
    if (!rows.empty()) fmt::print("{}\n", format_table({"tensor", values.first, values.second}, rows));
    for (const auto& [key, pair] : provenance) fmt::print("{}: {} | {}\n", key, shown(pair.first), shown(pair.second));
    if (!same_scaling) fmt::print("scaled channels differ: {} and {} places\n", a.scaling.size(), b.scaling.size());
    fmt::print("{} of {} tensors differ; {} and {} bytes\n", changed.size(), std::max(a.types.size(), b.types.size()),
               a.file_bytes, b.file_bytes);
    return changed.empty() && same_scaling ? 0 : 1;
}

struct ImportValues {
    CommonOptions common;
    std::string file, output, base = "Q4_K_M";
};

int write_imported(const ImportValues& values, const GgufFile& source, Recipe recipe) {
    recipe.file_bytes = predicted_file_bytes(source, recipe.types, std::nullopt);
    write_recipe(values.output, recipe);
    if (values.common.json)
        fmt::print("{}", recipe_to_json(recipe));
    else
        fmt::print("{}: {} tensors change their type; {} bytes if built without an importance matrix\n", values.output,
                   recipe.types.size(), recipe.file_bytes);
    return 0;
}

}  // namespace

Command add_recipe(CLI::App& app) {
    auto* command = app.add_subcommand("recipe", "Compare recipes, or make one of an existing mix");
    command->require_subcommand(1);
    auto diff_values = std::make_shared<DiffValues>();
    auto gguf_values = std::make_shared<ImportValues>();
    auto file_values = std::make_shared<ImportValues>();

    auto* diff_command = command->add_subcommand("diff", "What differs between two recipes, or GGUF files");
    diff_command->footer(
        "Exit code 0 where neither a tensor's type nor scaled channels differ, else 1.\nExample:\n"
        "  cerebellum recipe diff small.recipe.json other-Q4_K_M.gguf");
    diff_command->add_option("A", diff_values->first, "A recipe (JSON) or a GGUF")->required()->type_name("FILE");
    diff_command->add_option("B", diff_values->second, "Another")->required()->type_name("FILE");
    diff_command->add_flag("--json", diff_values->json, "Print the result as JSON");

    auto* from_gguf = command->add_subcommand("from-gguf", "Copy an existing file's mix of types");
    from_gguf->footer(
        "Example:\n  cerebellum recipe from-gguf model-f16.gguf somebodys-Q4_K_XL.gguf -o recipe.json\n"
        "  cerebellum build model-f16.gguf --recipe recipe.json --imatrix m.gguf -o mine.gguf");
    add_model(*from_gguf, gguf_values->common);
    from_gguf->add_option("file", gguf_values->file, "The file whose mix is wanted")
        ->required()
        ->type_name("FILE.gguf");
    add_output(*from_gguf, gguf_values->common, gguf_values->output, "The recipe (JSON)");
    add_json(*from_gguf, gguf_values->common);

    auto* from_types = command->add_subcommand("from-type-file", "Take over a llama-quantize --tensor-type-file");
    from_types->footer(
        "Example:\n  cerebellum recipe from-type-file model-f16.gguf types.txt --base Q4_K_M -o recipe.json\n"
        "What the file does not name gets what llama-quantize gives it with the base type.");
    add_model(*from_types, file_values->common);
    from_types->add_option("file", file_values->file, "Lines of PATTERN=TYPE")->required()->type_name("FILE.txt");
    from_types->add_option("--base", file_values->base, "llama-quantize's type argument")
        ->type_name("BASE")
        ->capture_default_str();
    add_output(*from_types, file_values->common, file_values->output, "The recipe (JSON)");
    add_json(*from_types, file_values->common);

    return [=] {
        if (diff_command->parsed()) return diff(*diff_values);
        const auto& values = from_gguf->parsed() ? *gguf_values : *file_values;
        OutputGuard guard(values.common.force);
        guard.writes("the recipe", values.output);
        guard_model(guard, "the model", values.common.model);
        guard_model(guard, from_gguf->parsed() ? "the file whose mix is wanted" : "the type file", values.file);
        const auto lock = guard.lock();
        const auto source = GgufFile::open(values.common.model);
        return write_imported(values, source,
                              from_gguf->parsed() ? recipe_from_gguf(source, GgufFile::open(values.file))
                                                  : recipe_from_type_file(source, values.file, values.base));
    };
}

}  // namespace cerebellum::cli
