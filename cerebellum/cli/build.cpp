#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <optional>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/cli/commands.h"
#include "cerebellum/cli/options.h"
#include "cerebellum/cli/terminal.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/size.h"
#include "cerebellum/journal/moment_file.h"
#include "cerebellum/llama/presets.h"

namespace cerebellum::cli {

Command add_build(CLI::App& app) {
    struct Values {
        CommonOptions common;
        std::string recipe, output, moments;
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
    command
        ->add_option(
            "--moments", values->moments,
            "The second moments that a recipe with feedback rounding was made with: JOURNAL.moments, beside the "
            "journal")
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
        options.imatrix_file = name != recipe.provenance.end() ? name->second : imatrix_file.filename().string();
        std::optional<MomentFile> moments;
        if (!values->moments.empty()) {
            moments = MomentFile::open_existing(values->moments);
            if (const auto wanted = recipe.provenance.find("moments_sha256");
                wanted != recipe.provenance.end() && wanted->second != moments->digest())
                throw Error(
                    fmt::format("{} does not hold the second moments that {} was made with; name the file that was "
                                "collected with its measurements",
                                values->moments, values->recipe));
            options.moments = [&](const std::string& weight, std::int64_t matrix) {
                return moments->read(weight, matrix);
            };
        }
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
