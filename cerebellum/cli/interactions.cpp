#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "cerebellum/cli/commands.h"
#include "cerebellum/cli/options.h"
#include "cerebellum/cli/terminal.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/pipeline/interactions.h"
#include "cerebellum/report/table.h"

namespace cerebellum::cli {

namespace {

std::string describe(const InteractionResult& result) {
    std::string text;
    std::vector<std::vector<std::string>> rows;
    for (const auto& row : result.interactions)
        rows.push_back({row.name, row.kind, std::to_string(row.types.size()), fmt::format("{:.3e}", row.parts),
                        with_error(fmt::format("{:.3e}", row.whole.mean), row.whole.error, "{:.1e}"),
                        with_error(fmt::format("{:.3f}", row.ratio.mean), row.ratio.error, "{:.3f}")});
    if (!rows.empty())
        text += format_table({"together", "kind", "tensors", "sum of parts", "KLD", "ratio"}, rows) + "\n";
    rows.clear();
    for (const auto& row : result.recipes)
        rows.push_back({fmt::format("{:.3f} bpw", row.bits_per_weight), std::to_string(row.file_bytes),
                        fmt::format("{:.5f}", row.sum),
                        with_error(fmt::format("{:.5f}", row.whole.mean), row.whole.error, "{:.5f}"),
                        fmt::format("{:.3f}", row.ratio)});
    if (!rows.empty()) text += format_table({"recipe", "bytes", "sum of damages", "KLD", "ratio"}, rows) + "\n";
    return text + "KLD in nats per token, ± one standard error clustered by window. A ratio above 1: worse together.\n";
}

void choose(InteractionOptions& options, const std::string& what) {
    options.pairs = options.layers = options.ladders = options.recipes = false;
    for (const auto& word : CLI::detail::split(what, ',')) {
        if (word == "pairs")
            options.pairs = true;
        else if (word == "layers")
            options.layers = true;
        else if (word == "ladders")
            options.ladders = true;
        else if (word == "recipes")
            options.recipes = true;
        else
            throw UsageError(fmt::format("--measure {}: known are pairs, layers, ladders, recipes", word));
    }
}

}  // namespace

Command add_interactions(CLI::App& app) {
    struct Values {
        CommonOptions common;
        InteractionOptions options;
        std::string what = "pairs,layers,ladders,recipes", sizes;
    };
    auto values = std::make_shared<Values>();
    auto* command =
        app.add_subcommand("interactions", "Measure what changes do together, against the sum of what each does alone");
    command->footer(
        "Example:\n  cerebellum interactions model-f16.gguf --measure layers,recipes\n\n"
        "Pairs of tensors of one block, whole blocks, ladders (the 2, 4, 8, ... most demotable tensors of the model) "
        "and\n"
        "whole recipes. The recipes calibrate the predictions of 'allocate', 'quantize' and 'verify' with this "
        "journal.\n"
        "Run the command again to go on where it stopped; what was measured is not measured again.");
    add_model(*command, values->common);
    command->add_option("--measure", values->what, "What, comma-separated")->capture_default_str();
    command
        ->add_option("--bits", values->options.bits,
                     "Change tensors to their type nearest to this many bits per weight")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    command
        ->add_option("--pair-layers", values->options.pair_layers,
                     "Measure the pairs of so many blocks, spread over the model")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    command->add_option(
        "--sizes", values->sizes,
        "Sizes of the recipes, comma-separated, as 3bpw,4.5bpw (default: spread over what is possible)");
    add_measuring(*command, values->common);
    command
        ->add_option("--tensors", values->common.tensors,
                     "Only changes of tensors whose name matches, as 'blk.1?.ffn_*'; repeatable")
        ->type_name("GLOB");
    add_json(*command, values->common);
    return [values] {
        TerminalProgress progress(values->common.quiet, values->common.verbose);
        choose(values->options, values->what);
        for (const auto& size : CLI::detail::split(values->sizes, ','))
            if (!size.empty()) values->options.sizes.push_back(parse_size(size));
        Session session(run_options(values->common, ""), progress);
        const auto result = measure_interactions(session, values->options, progress);
        if (values->common.json)
            fmt::print("{}\n", json_to_text(to_json(result), 1));
        else
            fmt::print("{}", describe(result));
        return 0;
    };
}

}  // namespace cerebellum::cli
