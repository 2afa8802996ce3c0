#pragma once

#include <string>
#include <vector>

#include "cerebellum/cli/options.h"

namespace cerebellum::cli {

/// Options of `ablate` that make it a classical sweep: a baseline, one tensor at a time crushed.
struct CrushValues {
    std::string baseline, base_gguf, crush, plan, output;

    bool wanted() const { return !baseline.empty() || !base_gguf.empty() || !crush.empty() || !output.empty(); }
};

/// Adds the model, which such a sweep can do without, and the options above.
void add_crush(CLI::App& command, CommonOptions& common, CrushValues& values);

/// Turns plans (--plan, or a --tensors that names a .json file) into names of tensors. Returns these; what is left in
/// `common.tensors` are globs.
std::vector<std::string> take_plans(CommonOptions& common, const CrushValues& values);

int run_crush(const CommonOptions& common, const CrushValues& values, const std::vector<std::string>& tensors);

}  // namespace cerebellum::cli
