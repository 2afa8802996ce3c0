#pragma once

#include <string>

#include "cerebellum/cli/import_source.h"
#include "cerebellum/core/size.h"

namespace cerebellum::cli {

/// Options of `allocate` that make it work from measurements made elsewhere.
struct ImportedValues {
    ImportSource source;
    std::string budget_gb, plan, base, extrapolate;

    bool wanted() const { return source.wanted(); }
};

/// Adds the model, which is not always needed then, and these options.
void add_imported(CLI::App& command, CommonOptions& common, ImportedValues& values);

/// The size asked for, by --size or by --budget (GB). Throws UsageError unless there is exactly one.
SizeGoal wanted_size(const std::string& size, const ImportedValues& values);

int allocate_from_import(const CommonOptions& common, const ImportedValues& values, const std::string& size,
                         const std::string& output);

}  // namespace cerebellum::cli
