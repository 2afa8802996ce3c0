#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cerebellum/cli/commands.h"
#include "cerebellum/cli/goal_options.h"
#include "cerebellum/cli/options.h"
#include "cerebellum/cli/terminal.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/size.h"
#include "cerebellum/pipeline/report_document.h"
#include "cerebellum/pipeline/run_files.h"
#include "cerebellum/pipeline/unusable.h"

namespace cerebellum::cli {

Command add_report(CLI::App& app) {
    struct Values {
        CommonOptions common;
        ConstraintOptions constraints;
        std::string output, recipe;
        std::vector<std::string> results;
    };
    auto values = std::make_shared<Values>();
    auto* command =
        app.add_subcommand("report", "Write a page that shows what was measured and allocates in the browser");
    command->footer(
        "Examples:\n  cerebellum report model-f16.gguf --journal model-f16.cerebellum.db -o report.html\n"
        "  cerebellum report model-f16.gguf --journal model-f16.cerebellum.db --recipe model-4gb.recipe.json \\\n"
        "      --results model-4gb.results.json -o model-4gb.report.html\n\n"
        "One HTML file that needs no network: damage of every tensor, ranking, frontier, a slider that allocates any\n"
        "budget as 'allocate' does, interactions, predictions against measurements, results, provenance. Nothing is\n"
        "measured. Without the model exact sizes come from the recipe; without either they leave the header out.");
    command->add_option("model", values->common.model, "The source; only its header is read")->type_name("MODEL.gguf");
    command->add_option("--journal", values->common.journal, "The journal with the measurements")
        ->required()
        ->type_name("FILE");
    command->add_option("--recipe", values->recipe, "The recipe of the delivered file")->type_name("FILE");
    command
        ->add_option("--results", values->results,
                     "Stored results of quantize, verify or evaluations (JSON); repeatable")
        ->type_name("FILE");
    add_output(*command, values->common, values->output, "The page (HTML)");
    add_constraints(*command, values->constraints);
    add_types(*command, values->common);
    add_chosen_rounding(*command, values->common);
    add_aim(*command, values->common);
    add_threads(*command, values->common);
    add_json(*command, values->common);
    return [values] {
        OutputGuard guard(values->common.force);
        guard.writes("the report", values->output).reads("the recipe", values->recipe);
        for (const auto& results : values->results) guard.reads("the results", results);
        guard_model(guard, "the model", values->common.model);
        guard_journal(guard, values->common.journal);
        const auto lock = guard.lock();
        ReportSources sources;
        sources.journal = values->common.journal;
        if (!values->common.model.empty()) sources.model = values->common.model;
        if (!values->recipe.empty()) sources.recipe = values->recipe;
        sources.results.assign(values->results.begin(), values->results.end());
        sources.aim = aim_of(values->common);
        sources.constraints = constraints_of(values->constraints, values->common.threads);
        TerminalProgress progress(values->common.quiet, values->common.verbose);
        warn_of_unusable(Journal::open_existing(sources.journal), progress);
        const auto bytes = write_report(values->output, sources);
        if (values->common.json)
            fmt::print("{}\n", json_to_text(nlohmann::json{{"output", values->output}, {"bytes", bytes}}, 1));
        else
            fmt::print("{}: {}\n", values->output, format_bytes(bytes));
        return 0;
    };
}

}  // namespace cerebellum::cli
