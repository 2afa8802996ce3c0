#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/build/preset_recipe.h"
#include "cerebellum/build/recipe_build.h"
#include "cerebellum/calibrate/imatrix_tools.h"
#include "cerebellum/cli/commands.h"
#include "cerebellum/cli/options.h"
#include "cerebellum/cli/terminal.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/size.h"
#include "cerebellum/journal/moment_file.h"
#include "cerebellum/pipeline/run_files.h"
#include "cerebellum/report/table.h"

namespace cerebellum::cli {

namespace {

struct Values {
    CommonOptions common;
    std::string recipe, preset, moments, output, split_size, save_recipe;
    std::vector<std::string> keep;
    bool keep_split = false;
    bool no_provenance = false;
    bool dry_run = false;
};

/// What to build, and in which order its tensors lie.
Recipe find_recipe(const Values& values, const GgufFile& source, bool has_imatrix, BuildOptions& options) {
    if (!values.preset.empty()) {
        auto preset = preset_recipe(source, values.preset, has_imatrix);
        options.file_type = preset.file_type;
        options.tensor_order = std::move(preset.order);
        return std::move(preset.recipe);
    }
    return read_recipe(values.recipe);
}

/// The moments that the recipe's feedback was measured with.
MomentFile open_moments(const Values& values, const Recipe& recipe) {
    auto moments = MomentFile::open_existing(values.moments);
    if (const auto wanted = recipe.provenance.find("moments_sha256");
        wanted != recipe.provenance.end() && wanted->second != moments.digest())
        throw Error(
            fmt::format("{} does not hold the second moments that {} was made with; name the file that was "
                        "collected with its measurements",
                        values.moments, values.recipe));
    return moments;
}

void warn_of_losses(const GgufFile& source, const Recipe& recipe, const Imatrix* imatrix, Progress& progress) {
    if (const auto warning = requantization_warning(source, recipe.types); !warning.empty()) progress.warn(warning);
    if (imatrix != nullptr)
        if (const auto warning = coverage_warning(*imatrix, source, recipe.types); !warning.empty())
            progress.warn(warning);
    const auto mtp = mtp_tensors(source);
    const auto rounded = std::ranges::count_if(mtp, [&](const std::string& name) {
        const auto found = recipe.types.find(name);
        return found != recipe.types.end() && found->second.type != source.find(name)->type;
    });
    if (rounded > 0)
        progress.warn(
            fmt::format("{} tensors that predict further tokens (MTP) are quantized, which no measurement sees; --keep "
                        "'{}*' keeps them as they are",
                        rounded, mtp.front().substr(0, mtp.front().find('.', 4) + 1)));
}

nlohmann::json files_json(const std::vector<PlannedFile>& files) {
    auto all = nlohmann::json::array();
    for (const auto& file : files) all.push_back({{"path", file.path.string()}, {"bytes", file.bytes}});
    return all;
}

void print_plan(const Values& values, const GgufFile& source, const Recipe& recipe,
                const std::vector<PlannedFile>& files, std::uint64_t bytes, double bpw) {
    const auto types = complete_types(source, recipe.types);
    auto tensors = nlohmann::json::array();
    std::vector<std::vector<std::string>> rows;
    for (std::size_t i = 0; i < files.size(); ++i)
        for (const auto& name : files[i].tensors) {
            const TensorInfo& tensor = *source.find(name);
            const auto type = types.at(name);
            const auto size = type_size_bytes(type.type, tensor.row_length(), tensor.n_rows());
            tensors.push_back({{"name", name},
                               {"from", type_name(tensor.type)},
                               {"to", type_name(type)},
                               {"bytes", size},
                               {"file", i}});
            rows.push_back({name, type_name(tensor.type), type_name(type), std::to_string(size)});
        }
    if (values.common.json) {
        fmt::print("{}\n", json_to_text(nlohmann::json{{"dry_run", true},
                                                       {"bytes", bytes},
                                                       {"bpw", bpw},
                                                       {"files", files_json(files)},
                                                       {"tensors", tensors}},
                                        2));
        return;
    }
    fmt::print("{}\n", format_table({"tensor", "from", "to", "bytes"}, rows));
    for (const auto& file : files)
        fmt::print("{}: {} bytes, {} tensors\n", file.path.string(), file.bytes, file.tensors.size());
    fmt::print("{} bytes, {:.3f} bits per weight; nothing was written\n", bytes, bpw);
}

OutputGuard inputs_of(const Values& values) {
    OutputGuard guard(values.common.force);
    guard_model(guard, "the model", values.common.model);
    return guard.reads("the recipe", values.recipe)
        .reads("the importance matrix", values.common.imatrix)
        .reads("the second moments", values.moments);
}

int run(const Values& values) {
    if (values.recipe.empty() == values.preset.empty())
        throw UsageError("say what to build: either --recipe FILE or --preset NAME");
    if (values.output.empty() && !values.dry_run) throw UsageError("--output FILE is missing");
    if (values.keep_split && !values.split_size.empty())
        throw UsageError("--split-size and --keep-split exclude each other");
    TerminalProgress progress(values.common.quiet, values.common.verbose);
    BuildOptions options;
    options.threads = values.common.threads;
    options.overwrite = values.common.force;
    options.provenance = values.no_provenance ? Provenance::imatrix : Provenance::full;
    options.split_bytes = parse_bytes("--split-size", values.split_size);
    options.keep_split = values.keep_split;
    const std::filesystem::path output = values.output.empty() ? "out.gguf" : values.output;
    auto guard = inputs_of(values);
    if (options.split_bytes == 0 && !options.keep_split && !values.dry_run) guard.writes("the output", output);
    guard.writes("the recipe that is saved", values.save_recipe).check();
    const auto source = GgufFile::open(values.common.model);
    const std::filesystem::path imatrix_file = values.common.imatrix;
    auto imatrix = imatrix_file.empty() ? std::nullopt : std::optional(read_imatrix(imatrix_file));
    // Who wants the bytes of llama-quantize gets them, zeros and all.
    if (imatrix && !values.no_provenance)
        if (const auto gaps = describe_gaps(fill_gaps(*imatrix)); !gaps.empty()) progress.warn(gaps);
    const Imatrix* weights = imatrix ? &*imatrix : nullptr;
    auto recipe = find_recipe(values, source, imatrix.has_value(), options);
    keep_tensors(recipe, source, values.keep);
    obey_recipe(recipe, values.common.model, imatrix_file, options, progress);

    const auto files = plan_build(source, recipe, weights, output, options);
    guard = inputs_of(values);
    if (!values.dry_run)
        for (const auto& file : files) guard.writes("the output", file.path);
    const auto lock = guard.writes("the recipe that is saved", values.save_recipe).lock();
    std::uint64_t bytes = 0;
    for (const auto& file : files) bytes += file.bytes;
    const double bpw = 8.0 * static_cast<double>(bytes) / static_cast<double>(source.n_weights());
    warn_of_losses(source, recipe, weights, progress);
    if (!values.preset.empty()) recipe.file_bytes = bytes;
    if (!values.save_recipe.empty()) write_recipe(values.save_recipe, recipe);
    if (values.dry_run) {
        print_plan(values, source, recipe, files, bytes, bpw);
        return 0;
    }
    std::optional<MomentFile> moments;
    if (!values.moments.empty()) {
        moments = open_moments(values, recipe);
        options.moments = [&](const std::string& weight, std::int64_t matrix) { return moments->read(weight, matrix); };
    }
    build_gguf(source, recipe, weights, output, options, progress);
    if (values.common.json) {
        fmt::print("{}\n", json_to_text(nlohmann::json{{"output", files.front().path.string()},
                                                       {"bytes", bytes},
                                                       {"bpw", bpw},
                                                       {"files", files_json(files)}},
                                        2));
        return 0;
    }
    for (const auto& file : files)
        if (files.size() > 1) fmt::print("{}: {} bytes\n", file.path.string(), file.bytes);
    fmt::print("{}: {} bytes, {:.3f} bits per weight\n", files.front().path.string(), bytes, bpw);
    return 0;
}

}  // namespace

Command add_build(CLI::App& app) {
    auto values = std::make_shared<Values>();
    auto* command = app.add_subcommand("build", "Only build: write the GGUF that a recipe or a stock preset describes");
    command->footer(
        "Examples:\n"
        "  cerebellum build model-f16.gguf --recipe recipe.json --imatrix model.imatrix.gguf -o model-small.gguf\n"
        "  cerebellum build model-f16.gguf --preset Q4_K_M -o model-q4_k_m.gguf\n"
        "  cerebellum build model-f16.gguf --preset Q4_K_M --dry-run\n"
        "  cerebellum build model-00001-of-00003.gguf --preset Q8_0 --split-size 5GB -o model-q8_0.gguf\n\n"
        "A preset gives the types that llama-quantize gives, and its file but for the keys cerebellum.*;\n"
        "with --no-provenance the file is the same to the byte. Tensors that a recipe does not name stay as they\n"
        "are, those for vision, audio and further tokens (MTP) among them; --keep does that with a preset.\n"
        "Memory: a few megabytes per thread, whatever the size of the model.");
    add_model(*command, values->common);
    command->add_option("--recipe", values->recipe, "The recipe (JSON) from 'allocate' or 'quantize'")
        ->type_name("FILE");
    command->add_option("--preset", values->preset, "Instead: a mix of llama-quantize, such as Q4_K_M")
        ->type_name("NAME");
    command->add_option("--imatrix", values->common.imatrix, "The importance matrix (GGUF or .dat) to quantize with")
        ->type_name("FILE");
    command
        ->add_option(
            "--moments", values->moments,
            "The second moments that a recipe with feedback rounding was made with: JOURNAL.moments, beside the "
            "journal")
        ->type_name("FILE");
    add_output(*command, values->common, values->output, "The file to write");
    command->get_option("--output")->required(false);
    command
        ->add_option("--split-size", values->split_size,
                     "Write files NAME-00001-of-0000N.gguf of at most this size, as 5GB")
        ->type_name("SIZE");
    command->add_flag("--keep-split", values->keep_split, "Write the same split files as the source has");
    command->add_option("--keep", values->keep, "Tensors that stay as they are; repeatable, with * and ?")
        ->type_name("PATTERN");
    command->add_flag("--no-provenance", values->no_provenance, "Leave out the keys cerebellum.*");
    command->add_option("--save-recipe", values->save_recipe, "Write the preset as a recipe, too")->type_name("FILE");
    command->add_flag("--dry-run", values->dry_run, "Only print the table of tensors and the exact size");
    add_threads(*command, values->common);
    add_json(*command, values->common);
    return [values] { return run(*values); };
}

}  // namespace cerebellum::cli
