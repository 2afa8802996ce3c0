#include "cerebellum/cli/import_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "cerebellum/core/error.h"
#include "cerebellum/predict/foreign_type.h"
#include "cerebellum/predict/import_ablation.h"
#include "cerebellum/predict/import_csv.h"

namespace cerebellum::cli {

namespace fs = std::filesystem;

namespace {

Metric metric_of_csv(const fs::path& path, const std::string& wanted) {
    const bool ppl = path.filename().string().find("ppl") != std::string::npos;
    if ((wanted == "ppl" && !ppl) || (wanted == "kld" && ppl))
        throw UsageError(fmt::format("--metric {} does not go with {}", wanted, path.string()));
    return ppl ? Metric::nll : Metric::kld;
}

fs::path csv_file(const ImportSource& source) {
    fs::path path = source.sensitivity;
    if (!fs::is_directory(path)) return path;
    auto kld = path / "kld_results.csv";
    auto ppl = path / "ppl_results.csv";
    if (source.metric != "ppl" && fs::exists(kld)) return kld;
    if (source.metric != "kld" && fs::exists(ppl)) return ppl;
    throw Error(fmt::format("the folder {} has no {}_results.csv", path.string(),
                            source.metric.empty() ? "kld_results.csv and no ppl" : source.metric));
}

void choose_metric(DamageTable& table, const std::string& wanted) {
    if (wanted == "ppl") table.metric = Metric::nll;
    if (wanted == "kld" && table.metric != Metric::kld)
        throw Error(fmt::format("{} does not have a divergence for every tensor; use --metric ppl", table.origin));
}

}  // namespace

void add_import_source(CLI::App& command, ImportSource& source) {
    command
        .add_option("--map", source.maps,
                    "The tensors' shapes and bytes from a GGUF-Tool-Suite tensors.*.map, packed or not (default: those "
                    "in the folder's maps/); repeatable")
        ->type_name("FILE");
    command
        .add_option("--recipe", source.recipe, "A list of TENSOR=TYPE lines that every measured tensor has to be in")
        ->type_name("FILE");
    command.add_option("--metric", source.metric, "kld or ppl, where both are there (default: kld)")
        ->check(CLI::IsMember({"kld", "ppl"}));
    command
        .add_option("--crush", source.crush,
                    "The type that tensors were crushed to, where the file does not say (default: q2_K)")
        ->type_name("TYPE");
    command
        .add_option("--baseline-ppl", source.baseline_ppl,
                    "The baseline's perplexity, which ppl_results.csv does not have (default: the smallest in a row)")
        ->check(CLI::PositiveNumber);
}

std::vector<fs::path> tensor_maps(const ImportSource& source) {
    std::vector<fs::path> paths(source.maps.begin(), source.maps.end());
    if (!paths.empty() || source.sensitivity.empty()) return paths;
    const fs::path folder = (fs::is_directory(source.sensitivity) ? fs::path(source.sensitivity)
                                                                  : fs::path(source.sensitivity).parent_path()) /
                            "maps";
    if (fs::is_directory(folder))
        for (const auto& entry : fs::directory_iterator(folder))
            if (const auto name = entry.path().filename().string(); name.find(".map") != std::string::npos)
                paths.push_back(entry.path());
    std::ranges::sort(paths);
    return paths;
}

void guard_import(OutputGuard& guard, const ImportSource& source) {
    guard.reads("the measurements", source.ablation).reads("the list of tensors", source.recipe);
    if (!source.sensitivity.empty()) guard.reads("the measurements", csv_file(source));
    for (const auto& map : tensor_maps(source)) guard.reads("a tensor map", map);
}

DamageTable read_measurements(const ImportSource& source, const GgufFile* model) {
    if (!source.ablation.empty() && !source.sensitivity.empty())
        throw UsageError("--ablation and --sensitivity exclude each other; give one of them");
    const std::string crush = source.crush.empty() ? "q2_K" : source.crush;
    if (!parse_foreign_type(crush)) throw UsageError(fmt::format("--crush {}: there is no such type", crush));
    DamageTable table;
    if (!source.ablation.empty()) {
        table = read_ablation(source.ablation, crush);
        choose_metric(table, source.metric);
    } else {
        const auto file = csv_file(source);
        table = read_damage_csv(file, metric_of_csv(file, source.metric),
                                source.baseline_ppl > 0.0 ? std::optional(source.baseline_ppl) : std::nullopt);
    }
    if (model != nullptr) {
        check_names(
            table, [&](const std::string& name) { return model->find(name) != nullptr; }, model->path().string());
        if (table.model)
            for (const auto& tensor : table.model->baseline.tensors)
                if (const auto* same = model->find(tensor.name); same == nullptr || same->shape != tensor.shape)
                    throw Error(fmt::format("{} was measured on another model than {}: {} {}", table.origin,
                                            model->path().string(), tensor.name,
                                            same == nullptr ? "is not in it" : "has another shape there"));
    }
    if (!source.recipe.empty()) {
        const auto names = NameList::read(source.recipe);
        check_names(
            table, [&](const std::string& name) { return names.contains(name); }, names.origin());
    }
    return table;
}

}  // namespace cerebellum::cli
