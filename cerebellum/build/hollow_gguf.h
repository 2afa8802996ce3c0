#pragma once

#include <filesystem>

#include "cerebellum/core/recipe.h"
#include "cerebellum/gguf/gguf_file.h"

namespace cerebellum {

/// Writes the header of a built file with these types (tensors that are not named keep theirs) and a hole where the
/// data would be: enough for whoever looks at a model without its weights, and next to no space on the disk. Throws
/// Error where it cannot be written or a type does not fit.
void write_hollow_gguf(const GgufFile& source, const TypeMap& types, const std::filesystem::path& path);

}  // namespace cerebellum
