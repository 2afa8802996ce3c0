#pragma once

#include <filesystem>
#include <optional>

#include "cerebellum/allocate/recipe_problem.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/gguf/imatrix_file.h"
#include "cerebellum/journal/journal.h"
#include "cerebellum/pipeline/aim.h"

namespace cerebellum {

/// A model's header and what a journal knows of it: all that allocating takes.
struct MeasuredModel {
    GgufFile source;
    Journal journal;
    std::optional<Imatrix> imatrix;
    AllocationProblem problem;  // all choices
};

/// Opens both for reading. Throws Error where one cannot be used, the journal is of another model, was measured in
/// another way, or holds nothing.
MeasuredModel open_measured(const std::filesystem::path& model, const std::filesystem::path& journal,
                            const Aim& aim = {});

}  // namespace cerebellum
