#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <nlohmann/json.hpp>

#include "cerebellum/calibrate/imatrix.h"
#include "cerebellum/calibrate/imatrix_tools.h"
#include "cerebellum/cli/commands.h"
#include "cerebellum/cli/options.h"
#include "cerebellum/cli/terminal.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/output_guard.h"
#include "cerebellum/core/parallel.h"
#include "cerebellum/llama/placement.h"
#include "cerebellum/pipeline/run_files.h"
#include "cerebellum/report/table.h"

namespace cerebellum::cli {

namespace {

struct Values {
    CommonOptions common;
    std::vector<std::string> inputs;
    std::string output, format;
    int chunks = 0;
    std::uint32_t chunk_size = 512;
    bool process_output = false;
};

void write(const Values& values, const Imatrix& imatrix) {
    const bool legacy = values.format.empty() ? values.output.ends_with(".dat") : values.format == "dat";
    (legacy ? write_legacy_imatrix : write_imatrix)(values.output, imatrix);
}

int report(const Values& values, const Imatrix& imatrix, Progress& progress) {
    std::int64_t experts = 0, reached = 0;
    for (const auto& [name, entry] : imatrix.entries) {
        experts += std::ssize(entry.counts);
        reached += std::ranges::count_if(entry.counts, [](float count) { return count > 0.0f; });
    }
    if (reached < experts)
        progress.warn(fmt::format("{} of {} matrices were reached by no token; more text may reach them",
                                  experts - reached, experts));
    if (values.common.json)
        fmt::print("{}\n", json_to_text(nlohmann::json{{"output", values.output},
                                                       {"entries", imatrix.entries.size()},
                                                       {"chunks", imatrix.chunk_count},
                                                       {"chunk_size", imatrix.chunk_size},
                                                       {"datasets", imatrix.datasets},
                                                       {"matrices", experts},
                                                       {"matrices_reached", reached}},
                                        2));
    else
        fmt::print("{}: {} tensors, {} chunks of {} tokens\n", values.output, imatrix.entries.size(),
                   imatrix.chunk_count, imatrix.chunk_size);
    return 0;
}

int compute(const Values& values) {
    TerminalProgress progress(values.common.quiet, values.common.verbose);
    OutputGuard guard(values.common.force);
    guard.writes("the importance matrix", values.output);
    guard_model(guard, "the model", values.common.model);
    for (const auto& text : values.common.texts) guard.reads("the text", text);
    const auto lock = guard.lock();
    const std::string devices[] = {values.common.device};
    auto place = place_on(devices);
    place.device_bytes = parse_bytes("--device-memory", values.common.device_memory);
    check_place(place);
    constexpr int usual_context = 512;
    const int most = values.common.context > 0 ? values.common.context : usual_context;
    const auto model = Model::load_to_run(
        values.common.model,
        fitted(place, values.common.model, working_bytes(GgufFile::open(values.common.model), most, most)));
    const int context = values.common.context > 0 ? values.common.context : std::min(most, model.trained_context());
    TokenWindows windows;
    for (const auto& text : values.common.texts) {
        auto more = imatrix_windows(model, text, context, values.chunks);
        std::ranges::move(more, std::back_inserter(windows));
    }
    const int threads = values.common.threads > 0 ? values.common.threads : physical_cores();
    auto imatrix = compute_imatrix(model, windows, threads, "", progress);
    // llama-imatrix leaves out what is not in a block unless it is told otherwise.
    if (!values.process_output)
        std::erase_if(imatrix.entries, [](const auto& each) { return !each.first.starts_with("blk."); });
    imatrix.datasets.clear();
    for (const auto& text : values.common.texts)
        imatrix.datasets.push_back(std::filesystem::path(text).filename().string());
    write(values, imatrix);
    return report(values, imatrix, progress);
}

int merge(const Values& values) {
    TerminalProgress progress(values.common.quiet, values.common.verbose);
    OutputGuard guard(values.common.force);
    guard.writes("the importance matrix", values.output);
    for (const auto& input : values.inputs) guard.reads("a matrix to merge", input);
    const auto lock = guard.lock();
    std::vector<Imatrix> matrices;
    for (const auto& input : values.inputs) matrices.push_back(read_imatrix(input));
    const auto merged = merge_imatrices(matrices, values.chunk_size);
    write(values, merged);
    return report(values, merged, progress);
}

nlohmann::json to_json(const Imatrix& imatrix, const std::vector<ImatrixStatistics>& statistics) {
    auto tensors = nlohmann::json::array();
    for (const auto& one : statistics)
        tensors.push_back({{"tensor", one.tensor},
                           {"energy", one.total},
                           {"min", one.min},
                           {"max", one.max},
                           {"mean", one.mean},
                           {"deviation", one.deviation},
                           {"active", one.active},
                           {"columns", one.columns},
                           {"entropy_bits", one.entropy},
                           {"zd", one.outliers},
                           {"cosine", one.cosine},
                           {"tokens", one.tokens},
                           {"matrices", one.experts},
                           {"matrices_reached", one.experts_reached}});
    return {{"datasets", imatrix.datasets},
            {"chunks", imatrix.chunk_count},
            {"chunk_size", imatrix.chunk_size},
            {"tensors", tensors}};
}

int show(const Values& values) {
    const auto imatrix = read_imatrix(values.inputs.front());
    const auto statistics = imatrix_statistics(imatrix);
    if (values.common.json) {
        fmt::print("{}\n", json_to_text(to_json(imatrix, statistics), 2));
        return 0;
    }
    std::vector<std::vector<std::string>> rows;
    for (const auto& one : statistics) {
        const double most_bits = std::log2(static_cast<double>(one.columns));
        rows.push_back({one.tensor, fmt::format("{:.2f}", one.total), fmt::format("{:.4f}", one.min),
                        fmt::format("{:.4f}", one.max), fmt::format("{:.2f}", one.mean),
                        fmt::format("{:.2f}", one.deviation), fmt::format("{:.2f}%", 100.0 * one.active),
                        std::to_string(one.columns), fmt::format("{:.4f}", one.entropy),
                        most_bits > 0.0 ? fmt::format("{:.2f}%", 100.0 * one.entropy / most_bits) : "-",
                        fmt::format("{:.2f}%", 100.0 * one.outliers), fmt::format("{:.4f}", one.cosine),
                        fmt::format("{:.0f}", one.tokens),
                        one.experts > 1 ? fmt::format("{}/{}", one.experts_reached, one.experts) : "-"});
    }
    fmt::print("{}", format_table({"tensor", "energy", "min", "max", "mean", "sigma", "active", "columns", "entropy",
                                   "of max", "ZD", "cosine", "tokens", "experts"},
                                  rows));
    fmt::print("\n{} tensors, {} chunks of {} tokens", statistics.size(), imatrix.chunk_count, imatrix.chunk_size);
    for (const auto& dataset : imatrix.datasets) fmt::print(", {}", dataset);
    fmt::print("\n");
    return 0;
}

void add_format(CLI::App& command, Values& values) {
    command.add_option("--format", values.format, "gguf or dat (default: by the name of the output)")
        ->check(CLI::IsMember({"gguf", "dat"}));
}

}  // namespace

Command add_imatrix(CLI::App& app) {
    auto values = std::make_shared<Values>();
    auto* command = app.add_subcommand("imatrix", "Compute, merge and show importance matrices");
    command->require_subcommand(1);
    command->footer(
        "Examples:\n"
        "  cerebellum imatrix compute model-f16.gguf --text train.txt -o model.imatrix.gguf\n"
        "  cerebellum imatrix merge english.gguf code.gguf -o both.gguf\n"
        "  cerebellum imatrix show both.gguf\n\n"
        "The files are llama-imatrix's, in its GGUF format or in the older .dat one.");

    auto* computing = command->add_subcommand("compute", "From a model and text, as llama-imatrix does it");
    computing->footer(
        "The text is cut into windows of --ctx tokens, what is left over is not used. Per tensor: the sum of the\n"
        "squares of each input column, and the number of tokens; per expert for mixtures of experts.");
    add_model(*computing, values->common);
    computing->add_option("--text", values->common.texts, "Plain text, also gzip-compressed; repeatable")
        ->required()
        ->type_name("FILE");
    computing->add_option("--ctx", values->common.context, "Tokens per window (default: 512)")
        ->check(CLI::Range(16, 1 << 20));
    computing->add_option("--windows,--chunks", values->chunks, "At most so many windows of each text (default: all)")
        ->check(CLI::PositiveNumber);
    computing->add_flag("--process-output", values->process_output, "Collect for tensors outside of the blocks, too");
    add_output(*computing, values->common, values->output, "The importance matrix");
    add_format(*computing, *values);
    add_device(*computing, values->common.device);
    add_device_memory(*computing, values->common.device_memory);
    add_threads(*computing, values->common);
    add_json(*computing, values->common);

    auto* merging = command->add_subcommand("merge", "Of several matrices of one model, or of one in another format");
    merging->add_option("inputs", values->inputs, "Importance matrices")->required()->type_name("FILE");
    merging->add_option("--chunk-size", values->chunk_size, "Tokens per chunk of .dat files, which do not say it")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    add_output(*merging, values->common, values->output, "The sum of all");
    add_format(*merging, *values);
    add_json(*merging, values->common);

    auto* showing =
        command->add_subcommand("show", "Statistics per tensor, as llama-imatrix --show-statistics has them");
    showing->footer(
        "energy   sum over the columns of their mean squared activations\n"
        "active   share of columns above 1e-5\n"
        "entropy  in bits, of the columns' shares of the energy; 'of max' compares it with equal shares\n"
        "ZD       share of columns more than one sigma above the mean\n"
        "cosine   between the columns of this tensor and of the same one a block before\n"
        "tokens   the most that went into a matrix; experts: how many of them were reached");
    showing->add_option("input", values->inputs, "An importance matrix")->required()->expected(1)->type_name("FILE");
    add_json(*showing, values->common);

    return [values, computing, merging] {
        if (computing->parsed()) return compute(*values);
        if (merging->parsed()) return merge(*values);
        return show(*values);
    };
}

}  // namespace cerebellum::cli
