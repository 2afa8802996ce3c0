#pragma once

#include <string>

#include "cerebellum/cli/goal_options.h"
#include "cerebellum/cli/import_source.h"

namespace cerebellum::cli {

/// Options of `allocate` that make it work from measurements made elsewhere.
struct ImportedValues {
    ImportSource source;
    std::string budget_gb, plan, base, extrapolate;

    bool wanted() const { return source.wanted(); }
};

/// Adds the model, which is not always needed then, and these options.
void add_imported(CLI::App& command, CommonOptions& common, ImportedValues& values);

/// Throws UsageError where the goal is not a size, by --size, --bpw or --budget (GB), or more than one is given.
int allocate_from_import(const CommonOptions& common, const ImportedValues& values, const GoalOptions& goal,
                         const std::string& output);

}  // namespace cerebellum::cli
