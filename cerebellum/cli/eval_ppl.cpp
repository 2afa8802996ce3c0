#include <fmt/format.h>

#include "cerebellum/cli/eval_commands.h"
#include "cerebellum/cli/options.h"
#include "cerebellum/cli/terminal.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/evaluate/text_figures.h"
#include "cerebellum/report/table.h"

namespace cerebellum::cli {

namespace {

struct Values {
    EvalRunOptions run;
    EvalTextOptions text;
    std::vector<std::string> files;
};

nlohmann::json figures_json(const PerplexityFigures& figures) {
    return {{"perplexity", figures.perplexity.mean},
            {"perplexity_error", figures.perplexity.error},
            {"nll", figures.nll.mean},
            {"nll_error", figures.nll.error},
            {"tokens", figures.tokens},
            {"windows", figures.windows}};
}

int run_ppl(const Values& values) {
    TerminalProgress progress(values.run.quiet, values.run.verbose);
    const auto text = load_eval_text(values.text, values.run, values.files.front());
    auto described = describe_files(values.files, progress);
    for (std::size_t i = 0; i < described.size(); ++i) add_origin(described[i], values.files[i], progress);
    const auto errors = error_model_of(text.scoring.convention);
    auto json = describe(values.text, text, values.run);
    std::vector<FileTokenScores> scores;
    std::vector<std::vector<std::string>> rows;
    for (std::size_t i = 0; i < values.files.size(); ++i) {
        scores.push_back(score_text(values.files[i], text.text, text.scoring, progress));
        if (scores.back().tokens.size() != scores.front().tokens.size())
            throw Error(
                fmt::format("{} splits the text into other tokens than {}; their perplexities say nothing about "
                            "each other, so give one of them at a time",
                            values.files[i], values.files.front()));
        const auto figures = perplexity_figures(scores.back(), errors);
        described[i].update(figures_json(figures));
        auto row = file_cells(described[i]);
        row.push_back(with_error(fmt::format("{:.4f}", figures.perplexity.mean), figures.perplexity.error, "{:.4f}"));
        if (i == 0) {
            row.emplace_back();
        } else {
            const auto difference = nll_difference(scores.back(), scores.front(), errors);
            described[i]["log_ratio_to_first"] = difference.mean;
            described[i]["log_ratio_to_first_error"] = difference.error;
            row.push_back(with_error(fmt::format("{:+.5f}", difference.mean), difference.error, "{:.5f}"));
        }
        rows.push_back(std::move(row));
    }
    json["files"] = described;
    if (values.run.json)
        fmt::print("{}\n", json_to_text(json, 2));
    else
        fmt::print("{}", format_table({"file", "size", "bpw", "perplexity", "ln(PPL / first)"}, rows));
    return 0;
}

}  // namespace

Command add_eval_ppl(CLI::App& group) {
    auto values = std::make_shared<Values>();
    auto* command = group.add_subcommand("ppl", "Perplexity of files on a text, with paired differences");
    command->footer(
        "Examples:\n  cerebellum eval ppl model-Q4_K_M.gguf model-ours.gguf --text notes.txt\n"
        "  cerebellum eval ppl model-ours.gguf --wikitext2\n\n"
        "Every position behind the first eighth of a window is scored, and errors know that the tokens of a window\n"
        "depend on each other. --llama-perplexity gives the figures that llama-perplexity prints for the same text "
        "and\n"
        "--ctx; --wikitext2 is what model cards quote. Differences are those of the same tokens: their errors are "
        "much\n"
        "smaller than those of the perplexities.");
    command->add_option("files", values->files, "GGUF files; all but the first are also compared with the first")
        ->required()
        ->type_name("FILE.gguf");
    add_eval_text(*command, values->text);
    add_eval_run(*command, values->run);
    add_device_memory(*command, values->run.device_memory);
    return [values] { return run_ppl(*values); };
}

}  // namespace cerebellum::cli
