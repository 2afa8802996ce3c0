#pragma once

#include <filesystem>
#include <string>

#include "cerebellum/build/recipe.h"
#include "cerebellum/gguf/gguf_file.h"

namespace cerebellum {

/// The mix of an existing file as a recipe for `source`: every tensor gets the type it has there. Throws Error naming
/// the first tensor that one of the files lacks, whose shape differs, or whose rows cannot be made in that type.
Recipe recipe_from_gguf(const GgufFile& source, const GgufFile& other);

/// What llama-quantize would make of the source with this --tensor-type-file and this base type ("Q4_K_M"), as
/// libllama's own dry run says. Throws Error naming file and line where the text is none, and where libllama refuses.
Recipe recipe_from_type_file(const GgufFile& source, const std::filesystem::path& file, const std::string& base);

}  // namespace cerebellum
