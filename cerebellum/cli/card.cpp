#include "cerebellum/report/card.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <string_view>

#include "cerebellum/cli/card_options.h"
#include "cerebellum/cli/commands.h"
#include "cerebellum/cli/options.h"
#include "cerebellum/cli/terminal.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/quoting.h"
#include "cerebellum/pipeline/doctor.h"
#include "cerebellum/pipeline/file_records.h"
#include "cerebellum/pipeline/quantize.h"
#include "cerebellum/pipeline/run_files.h"

namespace cerebellum::cli {

namespace fs = std::filesystem;

namespace {

struct Values {
    std::string file, output, journal;
    std::vector<std::string> results;
    CardSettings settings;
    bool force = false, json = false, quiet = false;
};

fs::path beside(const fs::path& file, std::string_view ending) {
    fs::path path = file;
    path.replace_extension();
    path += ending;
    return path;
}

/// How the card refers to a file: as it lies from the card's folder.
std::string link_to(const fs::path& file, const fs::path& card) {
    return fs::absolute(file).lexically_relative(fs::absolute(card).parent_path()).generic_string();
}

/// The commands that build this very file again, where its recipe is there.
std::vector<std::string> commands_of(const Values& values) {
    auto commands = values.settings.commands;
    const fs::path file = values.file;
    if (fs::exists(recipe_path(file)) && fs::exists(imatrix_path(file)))
        commands.push_back(fmt::format(
            "cerebellum build {} --recipe {} --imatrix {} -o {}",
            shell_path(read_recipe(recipe_path(file)).source_name), shell_path(recipe_path(file).filename().string()),
            shell_path(imatrix_path(file).filename().string()), shell_path(file.filename().string())));
    return commands;
}

StoredResult stored(const fs::path& path, const fs::path& card) {
    return StoredResult::read(path, link_to(path, card));
}

nlohmann::json parsed(const fs::path& path) {
    return try_parse_json(read_file(path), limits_of_long_json).value_or(nlohmann::json());
}

int run(Values values) {
    const fs::path file = values.file;
    const fs::path card = values.output.empty() ? file.parent_path() / "README.md" : fs::path(values.output);
    OutputGuard guard(values.force);
    guard.writes("the card", card).writes("the facts beside the file", facts_path(file));
    if (!values.journal.empty()) guard.writes("the findings beside the file", findings_path(file));
    guard_model(guard, "the file", file);
    guard_journal(guard, values.journal);
    for (const auto& path : values.results) guard.reads("the results", path);
    for (const auto& path : {recipe_path(file), type_file_path(file), imatrix_path(file), results_path(file),
                             serving_path(file), report_path(file)})
        guard.reads("what lies beside the file", path);
    const auto lock = guard.lock();
    TerminalProgress progress(values.quiet, false);
    std::vector<StoredResult> evaluations;
    for (const auto& path : values.results) {
        evaluations.push_back(stored(path, card));
        kind_of(evaluations.back());  // refused before anything is written
    }
    values.settings.commands = commands_of(values);
    std::vector<fs::path> companions = {recipe_path(file), type_file_path(file), imatrix_path(file), results_path(file),
                                        report_path(file)};
    auto facts = card_facts(file, values.settings, companions, progress);
    if (fs::exists(results_path(file))) {
        const auto results = parsed(results_path(file));
        if (results.is_object() && results.contains("machine")) facts["machine"] = results["machine"];
    }
    if (fs::exists(report_path(file))) facts["report"] = link_to(report_path(file), card);
    for (const auto& path : values.results) check_evaluation(parsed(path), path, facts);
    if (fs::exists(serving_path(file))) check_record(parsed(serving_path(file)), serving_path(file).string(), facts);
    std::optional<StoredResult> findings;
    if (!values.journal.empty()) {
        const auto journal = Journal::open_existing(values.journal);
        check_measured_model(journal, facts);
        write_file_atomically(findings_path(file), json_to_text(card_findings(journal), 2) + "\n");
    } else if (fs::exists(findings_path(file))) {
        check_source(parsed(findings_path(file)), findings_path(file).string(), facts["source"]["fingerprint"]);
    }
    if (fs::exists(findings_path(file))) findings = stored(findings_path(file), card);
    write_file_atomically(facts_path(file), json_to_text(facts, 2) + "\n");
    const auto optional = [&](const fs::path& path) {
        return fs::exists(path) ? std::optional(stored(path, card)) : std::nullopt;
    };
    const CardSources sources{stored(facts_path(file), card), optional(results_path(file)), std::move(findings),
                              optional(serving_path(file)), std::move(evaluations)};
    write_file_atomically(card, write_card(sources));
    if (values.json)
        fmt::print("{}\n",
                   json_to_text(nlohmann::json{{"card", card.string()}, {"facts", facts_path(file).string()}}, 2));
    else
        fmt::print("{}\n", card.string());
    return 0;
}

}  // namespace

fs::path facts_path(const fs::path& file) {
    return beside(file, ".facts.json");
}
fs::path findings_path(const fs::path& file) {
    return beside(file, ".findings.json");
}
fs::path serving_path(const fs::path& file) {
    return beside(file, ".serving.json");
}
fs::path report_path(const fs::path& file) {
    return beside(file, ".report.html");
}
fs::path divergence_path(const fs::path& file) {
    return beside(file, ".kld.json");
}
fs::path speed_path(const fs::path& file) {
    return beside(file, ".speed.json");
}

void add_card_settings(CLI::App& command, CardSettings& settings) {
    const char* group = "What the model card says";
    command.add_option("--license", settings.license, "Licence, as apache-2.0 (default: the file's metadata)")
        ->group(group);
    command.add_option("--license-link", settings.license_link, "Where the text of another licence is")->group(group);
    command
        .add_option("--base-model", settings.base_models, "What it was made from, as Organisation/Model; repeatable")
        ->type_name("ID")
        ->group(group);
    command.add_option("--quantized-by", settings.quantized_by, "Who made the file")->type_name("NAME")->group(group);
    command.add_option("--tag", settings.tags, "A further tag; repeatable")->type_name("TAG")->group(group);
    command
        .add_option("--language", settings.languages, "A language, as en (default: the file's metadata); repeatable")
        ->type_name("CODE")
        ->group(group);
}

Command add_card(CLI::App& app) {
    auto values = std::make_shared<Values>();
    auto* command = app.add_subcommand("card", "Write a model card (README.md) from stored results");
    command->footer(
        "Examples:\n  cerebellum card model-4gb.gguf --journal model-f16.cerebellum.db --license apache-2.0\n"
        "  cerebellum card model-4gb.gguf --results kld.json speed.json cerebellum-eval/*.summary.json\n\n"
        "What 'quantize' and 'modelfile' left beside the file (.results.json, .recipe.json, .serving.json ...) is used "
        "by\n"
        "itself. Every number in the card is a link to the stored result and the place in it that it was taken from; "
        "what\n"
        "is not stored cannot be in the card. Hashes, types and findings are stored beside the file first "
        "(.facts.json,\n"
        ".findings.json).");
    command->add_option("file", values->file, "The file that the card is about")->required()->type_name("FILE.gguf");
    command->add_option("-o,--output", values->output, "The card (default: README.md beside the file)")
        ->type_name("FILE");
    command->add_flag("--force", values->force, "Replace the card if it exists");
    command->add_option("--journal", values->journal, "The journal with the measurements")->type_name("FILE");
    command
        ->add_option(
            "--results", values->results,
            "Stored evaluations: summaries, and what 'eval ppl', 'kld', 'speed', 'serve' and 'memory' print with "
            "--json")
        ->type_name("FILE");
    command
        ->add_option("--command", values->settings.commands, "A command that makes the file, for the card; repeatable")
        ->type_name("TEXT");
    add_card_settings(*command, values->settings);
    command->add_flag("-q,--quiet", values->quiet, "No progress on stderr");
    command->add_flag("--json", values->json, "Print the result as JSON");
    return [values] { return run(*values); };
}

}  // namespace cerebellum::cli
