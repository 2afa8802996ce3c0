#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "cerebellum/cli/commands.h"
#include "cerebellum/cli/dry_run.h"
#include "cerebellum/cli/goal_options.h"
#include "cerebellum/cli/options.h"
#include "cerebellum/cli/terminal.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/pipeline/convert.h"
#include "cerebellum/pipeline/quantize.h"
#include "cerebellum/pipeline/report_document.h"
#include "cerebellum/pipeline/run_files.h"
#include "cerebellum/report/html_report.h"
#include "cerebellum/report/table.h"

namespace cerebellum::cli {

namespace {

/// KLD, perplexity and same top, as far as they are known.
std::vector<std::string> figures_of(const Contender& contender) {
    if (contender.predicted_only()) {
        if (!contender.predicted) return {"-", "-", "-"};
        const auto& kld = contender.predicted->kld;
        const auto figure = fmt::format("{}{:.5f}", contender.predicted->at_least ? "≥ " : "", kld.mean);
        return {with_error(figure, kld.error, "{:.5f}"), "-", "-"};
    }
    const auto figures = summarize(contender.test);
    return {with_error(fmt::format("{:.5f}", figures.kld.mean), figures.kld.error, "{:.5f}"),
            with_error(fmt::format("{:.3f}", figures.perplexity), figures.perplexity_error, "{:.3f}"),
            fmt::format("{:.2f} %", 100.0 * figures.top1_agree.mean)};
}

std::string note_on(const Contender& contender, const std::string& delivered) {
    std::vector<std::string> notes;
    if (contender.name == delivered) notes.emplace_back("delivered");
    if (!contender.fits && contender.kind != Contender::Kind::source) notes.emplace_back("over budget");
    if (const auto how = measured_by(contender); how != "libllama")
        notes.emplace_back(how == "replay" ? "replayed" : how);
    return fmt::format("{}", fmt::join(notes, ", "));
}

std::string describe(const QuantizeResult& result) {
    std::vector<std::vector<std::string>> rows;
    for (const auto& contender : result.contenders) {
        auto& row = rows.emplace_back();
        row = {
            contender.name, format_bytes(contender.bytes),
            fmt::format("{:.2f}", 8.0 * static_cast<double>(contender.bytes) / static_cast<double>(result.n_weights))};
        for (auto& figure : figures_of(contender)) row.push_back(std::move(figure));
        row.push_back(note_on(contender, result.delivered));
    }
    return format_table({"file", "size", "bpw", "KLD", "perplexity", "same top", ""}, rows);
}

std::string describe(const std::optional<WholePrediction>& prediction) {
    if (!prediction) return "none, it has types that were not measured";
    if (!std::isfinite(prediction->calibrated.error)) return fmt::format("{:.5f}", prediction->sum);
    return fmt::format("{:.5f} ± {:.5f} ({:.5f} as the sum of single damages)", prediction->calibrated.mean,
                       prediction->calibrated.error, prediction->sum);
}

std::string describe(const TimedSearch& search) {
    const auto& result = search.result;
    auto text = fmt::format("Search: {} changes measured in {:.0f} s, {} of {} tests accepted", result.explored,
                            search.seconds, result.accepted(), result.steps.size());
    if (result.accepted() > 0)
        text += with_error(fmt::format("; KLD on the held-out text lower by {:.5f}", search.gain.mean),
                           search.gain.error, "{:.5f}");
    return text + (result.exhausted ? "; nothing is left to try." : "; the time was up.");
}

}  // namespace

Command add_quantize(CLI::App& app) {
    struct Values {
        CommonOptions common;
        GoalOptions goal;
        ConstraintOptions constraints;
        std::string output, imatrix_out, report;
        int window = 0;
        int rounds = -1;  // as many as the effort says
        std::string search;
        std::string scaling = "off", compare = "auto";
    };
    auto values = std::make_shared<Values>();
    auto* command =
        app.add_subcommand("quantize", "The whole job: measure, allocate, build and verify a file of a given size");
    command->footer(
        "Examples:\n  cerebellum quantize model-f16.gguf --size 4.25bpw -o model-small.gguf --text notes.txt\n"
        "  cerebellum quantize model-f16.gguf --vram 12GiB --serve-ctx 16384 --kv q8_0 --parallel 4 -o "
        "model-12g.gguf\n\n"
        "Interrupt it at any time; the same command goes on where it stopped. Another --size reuses the measurements.");
    add_model(*command, values->common);
    command->get_option("model")->description(
        "The source: a GGUF model in high precision (F16, BF16, F32), or the folder of a Hugging Face model, which is "
        "converted first ('cerebellum convert')");
    add_output(*command, values->common, values->output,
               "The file to write; recipe, type file, imatrix and results go beside it");
    add_measuring(*command, values->common);
    add_dry_run(*command, values->common);
    command
        ->add_option("--imatrix-out", values->imatrix_out,
                     "Where the importance matrix goes (default: beside the output)")
        ->type_name("FILE");
    command->add_option("--report", values->report, "Also write a page about the run, as 'report' does")
        ->type_name("FILE.html");
    add_window(*command, values->window);
    add_goal(*command, values->goal);
    add_constraints(*command, values->constraints);
    add_aim(*command, values->common);
    add_bettering(*command, values->rounds, values->search);
    add_scaling(*command, values->scaling);
    add_compare(*command, values->compare);
    add_json(*command, values->common);
    return [values] {
        TerminalProgress progress(values->common.quiet, values->common.verbose);
        QuantizeOptions options;
        values->common.context = settle_contexts(values->goal, values->common.context, values->window, progress);
        options.request.goal = goal_of(values->goal);
        options.output = values->output;
        options.overwrite = values->common.force;
        options.imatrix_out = values->imatrix_out;
        options.sequential = values->common.sequential;
        options.aim = aim_of(values->common);
        options.rounds = rounds_of(values->rounds, effort_of(values->common), options, values->constraints);
        options.scaling = values->scaling == "auto";
        options.compare_all = values->compare == "all";
        if (!values->search.empty()) options.search_seconds = parse_seconds("--search", values->search);
        if (values->common.dry_run) {
            const auto run = run_options(values->common, values->output);
            return dry_run(run, job_request(run.model, options), values->common.json, progress);
        }
        if (!values->report.empty()) report_page();  // throws where there is none
        const auto files = [&] {
            auto guard = files_of_job(run_options(values->common, values->output), options);
            return guard.writes("the report", values->report);
        };
        auto lock = files().lock();
        options.lock = &*lock;
        values->common.model = gguf_of(values->common.model, options.output.parent_path(), progress).string();
        files().check_apart();  // from the file that a folder was converted to
        const auto run = run_options(values->common, values->output);
        options.request.constraints = constraints_of(values->constraints, values->common.threads);
        Session session(run, progress);
        options.expect = [&progress](double stage_s, double later_s) { progress.expect(stage_s, later_s); };
        const auto result = quantize_model(session, options, progress);
        progress.detail(describe(session.times().stages()));
        if (!values->report.empty())
            write_report(values->report, {.journal = run.journal,
                                          .model = run.model,
                                          .recipe = recipe_path(options.output),
                                          .results = {results_path(options.output)},
                                          .aim = options.aim,
                                          .constraints = options.request.constraints});
        if (values->common.json) {
            fmt::print("{}\n", json_to_text(to_json(result), 2));
            return 0;
        }
        fmt::print("{}", describe(result));
        fmt::print("\n{}: {} bytes of {} ({:.2f} % used)", result.output.string(), result.recipe.file_bytes,
                   result.budget_bytes,
                   100.0 * static_cast<double>(result.recipe.file_bytes) / static_cast<double>(result.budget_bytes));
        for (const auto& remark : result.remarks) fmt::print("\n{}", remark);
        if (result.delivered_kind != Contender::Kind::ours)
            fmt::print("; the stock mix {} was better and was delivered", result.delivered);
        if (result.search) fmt::print("\n{}", describe(*result.search));
        fmt::print("\nKLD in nats per token from {}, ± one standard error, on text held out from every choice ({}).\n",
                   result.reference, result.text);
        // The floor of a bit-identical replay is rounding, far below anything that is shown.
        if (constexpr double shown = 1e-7; result.null_floor_kld > shown)
            fmt::print("Null floor: replaying the source against itself gives a KLD of {:.2e}.\n",
                       result.null_floor_kld);
        fmt::print("'replayed': measured without building the file. ");
        if (std::ranges::any_of(result.contenders, &Contender::predicted_only))
            fmt::print("'predicted': cannot be the best by the figures of its tensors. ");
        fmt::print("Predicted KLD of the delivered file: {}.\n", describe(result.prediction));
        if (const auto label = effort_label(result.effort); !label.empty()) fmt::print("{}.\n", label);
        return 0;
    };
}

}  // namespace cerebellum::cli
