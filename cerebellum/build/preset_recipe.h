#pragma once

#include <string>
#include <vector>

#include "cerebellum/build/recipe.h"
#include "cerebellum/gguf/gguf_file.h"

namespace cerebellum {

/// A stock mix of llama-quantize as a recipe for this model: libllama itself says, in a dry run, which type each tensor
/// gets. provenance["preset"] is the mix's name. Throws UsageError where there is no mix of that name, Error where
/// libllama refuses the model, or where llama-quantize would refuse to work without an importance matrix.
struct PresetRecipe {
    Recipe recipe;
    std::vector<std::string> order;  ///< in which llama-quantize writes the tensors
    std::uint32_t file_type = 0;     ///< general.file_type
};
PresetRecipe preset_recipe(const GgufFile& source, const std::string& name, bool has_imatrix);

/// The general.file_type of a recipe that was made of a preset; empty for any other recipe.
std::optional<std::uint32_t> preset_file_type(const Recipe& recipe);

/// Takes the tensors whose names match a pattern with * and ? out of the recipe, so that they keep the source's type.
/// Throws UsageError where a pattern matches no tensor of the source.
void keep_tensors(Recipe& recipe, const GgufFile& source, const std::vector<std::string>& patterns);

/// The tensors of the blocks that predict further tokens (MTP, *.nextn_predict_layers): llama.cpp runs a model without
/// them, so that nothing of what they lose shows in a measurement.
std::vector<std::string> mtp_tensors(const GgufFile& source);

}  // namespace cerebellum
