#pragma once

#include <filesystem>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/build/recipe.h"
#include "cerebellum/core/progress.h"

namespace cerebellum {

/// Sets what a recipe says of the file that it describes, and what llama-quantize would do for `model`: file type,
/// order of the tensors, name of the importance matrix (`imatrix_file` where the recipe names none), provenance. Warns
/// where another version made the recipe.
void obey_recipe(const Recipe& recipe, const std::filesystem::path& model, const std::filesystem::path& imatrix_file,
                 BuildOptions& options, Progress& progress);

}  // namespace cerebellum
