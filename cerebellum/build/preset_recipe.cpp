#include "cerebellum/build/preset_recipe.h"

#include <fmt/format.h>
#include <fnmatch.h>

#include <algorithm>
#include <charconv>

#include "cerebellum/core/error.h"
#include "cerebellum/llama/presets.h"

namespace cerebellum {

PresetRecipe preset_recipe(const GgufFile& source, const std::string& name, bool has_imatrix) {
    const auto preset = find_quantization(name);
    if (!preset) {
        std::string known;
        for (const auto& each : stock_presets()) known += (known.empty() ? "" : ", ") + each.name;
        throw UsageError(fmt::format("llama-quantize has no mix {}; there are {}", name, known));
    }
    const auto outcome = dry_run(source.path(), {.file_type = preset->file_type, .has_imatrix = has_imatrix});
    if (outcome.lacks_imatrix)
        throw Error(fmt::format(
            "{} needs an importance matrix for {}: its smallest types are useless without one; pass --imatrix FILE",
            preset->name, source.path().string()));
    PresetRecipe result;
    result.recipe.source_fingerprint = source.fingerprint();
    result.recipe.source_name = source.path().filename().string();
    result.recipe.types = outcome.types;
    result.recipe.provenance["preset"] = preset->name;
    result.order = outcome.order;
    result.file_type = static_cast<std::uint32_t>(preset->file_type);
    return result;
}

std::optional<std::uint32_t> preset_file_type(const Recipe& recipe) {
    const auto name = recipe.provenance.find("preset");
    if (name == recipe.provenance.end()) return std::nullopt;
    const auto preset = find_quantization(name->second);
    return preset ? std::optional(static_cast<std::uint32_t>(preset->file_type)) : std::nullopt;
}

void keep_tensors(Recipe& recipe, const GgufFile& source, const std::vector<std::string>& patterns) {
    for (const auto& pattern : patterns) {
        int matches = 0;
        for (const auto& tensor : source.tensors()) {
            if (::fnmatch(pattern.c_str(), tensor.name.c_str(), 0) != 0) continue;
            recipe.types.erase(tensor.name);
            ++matches;
        }
        if (matches == 0)
            throw UsageError(fmt::format("--keep {} matches no tensor of {}; 'cerebellum inspect' lists them", pattern,
                                         source.path().string()));
    }
}

std::vector<std::string> mtp_tensors(const GgufFile& source) {
    const auto blocks = source.uint_value(source.architecture() + ".block_count").value_or(0);
    const auto predicting = source.uint_value(source.architecture() + ".nextn_predict_layers").value_or(0);
    std::vector<std::string> names;
    for (const auto& tensor : source.tensors()) {
        std::uint64_t block = 0;
        constexpr std::string_view prefix = "blk.";
        if (!tensor.name.starts_with(prefix)) continue;
        const char* end = tensor.name.data() + tensor.name.size();
        const auto [rest, status] = std::from_chars(tensor.name.data() + prefix.size(), end, block);
        if (status != std::errc{} || rest == end || *rest != '.') continue;
        if (block < blocks && block + predicting >= blocks) names.push_back(tensor.name);
    }
    return names;
}

}  // namespace cerebellum
