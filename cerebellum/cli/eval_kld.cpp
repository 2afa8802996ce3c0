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
    std::string source;
    std::vector<std::string> files;
    bool details = false;
};

nlohmann::json quantiles_json(const Quantiles& quantiles) {
    auto json = nlohmann::json::array();
    for (const auto& [share, value] : quantiles) json.push_back({{"share", share}, {"value", value}});
    return json;
}

nlohmann::json figures_json(const DivergenceFigures& f) {
    return {{"perplexity", f.file.perplexity},
            {"source_perplexity", f.reference.perplexity},
            {"nll_correlation", f.nll_correlation},
            {"log_ratio", f.log_ratio},
            {"ratio", f.ratio},
            {"difference", f.difference},
            {"kld", f.kld},
            {"kld_quantiles", quantiles_json(f.kld_quantiles)},
            {"probability_change", f.change},
            {"probability_change_rms", f.rms_change},
            {"probability_change_quantiles", quantiles_json(f.change_quantiles)},
            {"same_top", f.same_top},
            {"tokens", f.file.tokens},
            {"windows", f.file.windows}};
}

void print_quantiles(const char* what, const Quantiles& quantiles, double unit, const char* suffix) {
    for (const auto& [share, value] : quantiles) {
        const auto name = share == 1.0   ? "maximum"
                          : share == 0.5 ? "median"
                          : share == 0.0 ? "minimum"
                                         : fmt::format("{:g} %", 100.0 * share);
        fmt::print("  {:<28} {:10.6f}{}\n", fmt::format("{} {}", what, name), unit * value, suffix);
    }
}

void print_details(const std::string& file, const DivergenceFigures& f) {
    const auto line = [](const char* what, const Estimate& e, double unit = 1.0, const char* suffix = "") {
        fmt::print("  {:<28} {}{}\n", what,
                   with_error(fmt::format("{:10.6f}", unit * e.mean), unit * e.error, "{:.6f}"), suffix);
    };
    fmt::print("\n{}\n", file);
    line("perplexity", f.file.perplexity);
    line("perplexity of the source", f.reference.perplexity);
    fmt::print("  {:<28} {:10.2f} %\n", "correlation of ln PPL", 100.0 * f.nll_correlation);
    line("ln(PPL / source)", f.log_ratio);
    line("PPL / source", f.ratio);
    line("PPL - source", f.difference);
    line("KLD mean", f.kld);
    print_quantiles("KLD", f.kld_quantiles, 1.0, "");
    line("Δp mean", f.change, 100.0, " %");
    print_quantiles("Δp", f.change_quantiles, 100.0, " %");
    line("Δp RMS", f.rms_change, 100.0, " %");
    line("same top", f.same_top, 100.0, " %");
}

double quantile(const Quantiles& quantiles, double share) {
    for (const auto& [at, value] : quantiles)
        if (at == share) return value;
    return 0.0;
}

int run_kld(const Values& values) {
    TerminalProgress progress(values.run.quiet, values.run.verbose);
    const auto text = load_eval_text(values.text, values.run, values.source);
    auto source = describe_file(values.source, progress);
    auto described = describe_files(values.files, progress);
    add_origin(source, values.source, progress);
    for (std::size_t i = 0; i < described.size(); ++i) add_origin(described[i], values.files[i], progress);
    const auto errors = error_model_of(text.scoring.convention);
    const std::vector<std::filesystem::path> files(values.files.begin(), values.files.end());
    const auto scores = score_text_against(values.source, files, text.text, text.scoring, progress);
    std::vector<DivergenceFigures> figures;
    std::vector<std::vector<std::string>> rows;
    for (std::size_t i = 0; i < files.size(); ++i) {
        const auto& f = figures.emplace_back(divergence_figures(scores[i], errors));
        described[i].update(figures_json(f));
        auto row = file_cells(described[i]);
        row.push_back(with_error(fmt::format("{:.6f}", f.kld.mean), f.kld.error, "{:.6f}"));
        row.push_back(fmt::format("{:.4f}", quantile(f.kld_quantiles, 0.999)));
        row.push_back(fmt::format("{:.4f}", f.file.perplexity.mean));
        row.push_back(with_error(fmt::format("{:+.5f}", f.log_ratio.mean), f.log_ratio.error, "{:.5f}"));
        row.push_back(fmt::format("{:.2f} %", 100.0 * f.same_top.mean));
        if (files.size() > 1) row.emplace_back();
        if (i > 0) {
            const auto difference = kld_difference(scores[i], scores[0], errors);
            described[i]["kld_minus_first"] = difference;
            row.back() = with_error(fmt::format("{:+.6f}", difference.mean), difference.error, "{:.6f}");
        }
        rows.push_back(std::move(row));
    }
    if (values.run.json) {
        auto json = describe(values.text, text, values.run);
        source["perplexity"] = figures.front().reference.perplexity;
        json["source"] = source;
        json["files"] = described;
        fmt::print("{}\n", json_to_text(json, 2));
        return 0;
    }
    std::vector<std::string> header = {"file",    "size", "bpw", "KLD", "99.9 % KLD", "PPL", "ln(PPL / source)",
                                       "same top"};
    if (files.size() > 1) header.emplace_back("KLD - first");
    fmt::print("{}", format_table(header, rows));
    if (values.details)
        for (std::size_t i = 0; i < files.size(); ++i) print_details(values.files[i], figures[i]);
    return 0;
}

}  // namespace

Command add_eval_kld(CLI::App& group) {
    auto values = std::make_shared<Values>();
    auto* command = group.add_subcommand("kld", "Divergence of files from their source on a text");
    command->footer(
        "Examples:\n  cerebellum eval kld model-f16.gguf model-Q4_K_M.gguf model-ours.gguf --text notes.txt\n"
        "  cerebellum eval kld model-f16.gguf model-ours.gguf --wikitext2 --details\n\n"
        "KLD is KL(source ‖ file) per token over the whole vocabulary, in nats. All files are evaluated side by side, "
        "so\n"
        "nothing is written and memory does not grow with the text. --llama-perplexity gives the figures of\n"
        "llama-perplexity --kl-divergence, whose 16-bit log-probabilities leave a floor of about 1e-5.");
    command->add_option("source", values->source, "The file that the others were made from")
        ->required()
        ->type_name("SOURCE.gguf");
    command->add_option("files", values->files, "GGUF files; all but the first are also compared with the first")
        ->required()
        ->type_name("FILE.gguf");
    command->add_flag("--details", values->details, "Also print quantiles and every other statistic");
    add_eval_text(*command, values->text);
    add_eval_run(*command, values->run);
    add_device_memory(*command, values->run.device_memory);
    return [values] { return run_kld(*values); };
}

}  // namespace cerebellum::cli
