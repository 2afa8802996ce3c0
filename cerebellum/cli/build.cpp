#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <optional>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/cli/commands.h"
#include "cerebellum/cli/options.h"
#include "cerebellum/cli/terminal.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/size.h"
#include "cerebellum/llama/presets.h"
#include "cerebellum/version.h"

namespace cerebellum::cli {

Command add_build(CLI::App& app) {
    struct Values {
        CommonOptions common;
        std::string recipe, output;
    };
    auto values = std::make_shared<Values>();
    auto* command = app.add_subcommand("build", "Only build: write the GGUF that a recipe describes");
    command->footer(
        "Example:\n  cerebellum build model-f16.gguf --recipe recipe.json --imatrix model.imatrix.gguf -o "
        "model-small.gguf");
    add_model(*command, values->common);
    command->add_option("--recipe", values->recipe, "The recipe (JSON) from 'allocate' or 'quantize'")
        ->required()
        ->type_name("FILE");
    command->add_option("--imatrix", values->common.imatrix, "The importance matrix (GGUF) to quantize with")
        ->type_name("FILE");
    add_output(*command, values->common, values->output, "The file to write");
    add_threads(*command, values->common);
    add_json(*command, values->common);
    return [values] {
        TerminalProgress progress(values->common.quiet, values->common.verbose);
        const auto recipe = read_recipe(values->recipe);
        const auto source = GgufFile::open(values->common.model);
        check_output_path(values->output, recipe.file_bytes, values->common.force);
        const std::filesystem::path imatrix_file = values->common.imatrix;
        const auto imatrix = imatrix_file.empty() ? std::nullopt : std::optional(read_imatrix(imatrix_file));
        BuildOptions options;
        options.threads = values->common.threads;
        options.overwrite = values->common.force;
        options.tensor_order = dry_run(values->common.model, {.file_type = *file_type_of(GGML_TYPE_F16)}).order;
        const auto name = recipe.provenance.find("imatrix");
        if (const auto metadata = recipe.provenance.find(metadata_key);
            metadata != recipe.provenance.end() && metadata->second == "none")
            options.provenance = Provenance::none;
        if (const auto version = recipe.provenance.find("cerebellum");
            version != recipe.provenance.end() && version->second != CEREBELLUM_VERSION)
            progress.warn(
                fmt::format("the recipe was made by version {} and this is {}: the file may differ from the "
                            "one that it describes",
                            version->second, CEREBELLUM_VERSION));
        options.imatrix_file = name != recipe.provenance.end() ? name->second : imatrix_file.filename().string();
        const auto bytes = build_gguf(source, recipe, imatrix ? &*imatrix : nullptr, values->output, options, progress);
        const double bpw = 8.0 * static_cast<double>(bytes) / static_cast<double>(source.n_weights());
        if (values->common.json)
            fmt::print("{}\n", nlohmann::json{{"output", values->output}, {"bytes", bytes}, {"bpw", bpw}}.dump(2));
        else
            fmt::print("{}: {} bytes, {:.3f} bits per weight\n", values->output, bytes, bpw);
        return 0;
    };
}

}  // namespace cerebellum::cli
