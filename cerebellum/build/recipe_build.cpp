#include "cerebellum/build/recipe_build.h"

#include <fmt/format.h>

#include "cerebellum/build/preset_recipe.h"
#include "cerebellum/llama/presets.h"
#include "cerebellum/version.h"

namespace cerebellum {

void obey_recipe(const Recipe& recipe, const std::filesystem::path& model, const std::filesystem::path& imatrix_file,
                 BuildOptions& options, Progress& progress) {
    const auto said = [&](const char* key) {
        const auto found = recipe.provenance.find(key);
        return found != recipe.provenance.end() ? found->second : std::string();
    };
    if (!options.file_type) options.file_type = preset_file_type(recipe);
    if (options.tensor_order.empty())
        options.tensor_order = dry_run(model, {.file_type = *file_type_of(GGML_TYPE_F16)}).order;
    options.imatrix_file = said("imatrix").empty() ? imatrix_file.string() : said("imatrix");
    if (said(metadata_key) == "none") options.provenance = Provenance::none;
    if (const auto version = said("cerebellum"); !version.empty() && version != CEREBELLUM_VERSION)
        progress.warn(
            fmt::format("the recipe was made by version {} and this is {}: the file may differ from the one that it "
                        "describes",
                        version, CEREBELLUM_VERSION));
}

}  // namespace cerebellum
