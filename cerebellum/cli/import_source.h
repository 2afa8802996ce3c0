#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cerebellum/cli/options.h"
#include "cerebellum/core/output_guard.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/predict/damage_table.h"

namespace cerebellum::cli {

/// Where imported measurements come from, and the model that they are of.
struct ImportSource {
    std::string ablation;     // ablation_results.json
    std::string sensitivity;  // a folder with kld_results.csv or ppl_results.csv, or such a file
    std::vector<std::string> maps;
    std::string recipe;  // list of names
    std::string metric, crush;
    double baseline_ppl = 0.0;

    bool wanted() const { return !ablation.empty() || !sensitivity.empty(); }
};

/// Options that say how to read them, --map, --recipe, --metric, --crush and --baseline-ppl.
void add_import_source(CLI::App& command, ImportSource& source);

/// Tensor maps in the folder that the measurements come from, or those given.
std::vector<std::filesystem::path> tensor_maps(const ImportSource& source);

/// Says that a command reads them.
void guard_import(OutputGuard& guard, const ImportSource& source);

/// Reads and checks the measurements. With a `model`, a tensor map or a recipe every tensor must be in it.
DamageTable read_measurements(const ImportSource& source, const GgufFile* model);

}  // namespace cerebellum::cli
