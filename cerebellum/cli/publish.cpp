#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cerebellum/cli/card_options.h"
#include "cerebellum/cli/commands.h"
#include "cerebellum/cli/dry_run.h"
#include "cerebellum/cli/goal_options.h"
#include "cerebellum/cli/options.h"
#include "cerebellum/cli/subprocess.h"
#include "cerebellum/cli/terminal.h"
#include "cerebellum/core/digest_memory.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/hash.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/quoting.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/pipeline/derivation.h"
#include "cerebellum/pipeline/quantize.h"
#include "cerebellum/pipeline/run_files.h"
#include "cerebellum/report/html_report.h"
#include "cerebellum/version.h"

namespace cerebellum::cli {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr const char* state_name = "publish.json";

struct Values {
    CommonOptions common;
    GoalOptions goal;
    ConstraintOptions constraints;
    CardSettings settings;
    std::string folder, name;
    std::vector<std::string> eval_texts, results;
    std::string scaling = "off", compare = "auto", search;
    int rounds = -1, window = 0;  // rounds: as many as the effort says
    bool speed = false;
};

/// The name of a model without what says how it is stored.
std::string base_name(const fs::path& model) {
    auto name = model.stem().string();
    for (const auto* ending : {"-f16", "-bf16", "-f32", "-F16", "-BF16", "-F32", ".f16", ".bf16", ".f32"})
        if (name.ends_with(ending)) return name.substr(0, name.size() - std::string_view(ending).size());
    return name;
}

/// "4.25bpw", "12GiB", "kld0.02".
std::string label_of(const GoalOptions& goal) {
    if (!goal.size.empty()) return goal.size;
    if (!goal.bpw.empty()) return goal.bpw.ends_with("bpw") ? goal.bpw : goal.bpw + "bpw";
    if (goal.max_kld > 0.0) return fmt::format("kld{:g}", goal.max_kld);
    if (!goal.vram.empty()) return goal.vram + "-vram";
    return goal.gpu_size + "-gpu";
}

/// The long name of an option; empty for arguments without one.
std::string long_name(const CLI::Option& option) {
    return option.get_lnames().empty() ? "" : "--" + option.get_lnames().front();
}

/// What was given of the options that another command has, too, as arguments of it.
std::vector<std::string> shared_arguments(const CLI::App& from, const CLI::App& to,
                                          const std::vector<std::string>& without) {
    std::vector<std::string> arguments;
    for (const auto* option : from.get_options([](const CLI::Option*) { return true; })) {
        const auto name = long_name(*option);
        if (name.empty() || option->count() == 0 || to.get_option_no_throw(name) == nullptr) continue;
        if (std::ranges::find(without, name) != without.end()) continue;
        const bool flag = option->get_items_expected_max() == 0;
        for (const auto& value : option->results()) {
            if (flag && value != "true") continue;
            arguments.push_back(name);
            if (!flag) arguments.push_back(value);
        }
    }
    return arguments;
}

/// As it is written in a shell; folders of this machine are left out.
std::string shown(const std::vector<std::string>& arguments) {
    std::string text = "cerebellum";
    for (const auto& argument : arguments) {
        auto word = argument;
        if (word.find('/') != std::string::npos) {
            const auto equals = word.find('=');
            auto prefix = equals < word.find('/') ? word.substr(0, equals + 1) : std::string();
            word = prefix.append(fs::path(word).filename().string());
        }
        text += " " + shell_word(word);
    }
    return text;
}

/// A command of this program, the files that it reads, and those that it leaves. The journal is neither: it grows, and
/// knows by itself what it belongs to.
struct Step {
    std::string name;
    std::vector<std::string> arguments;
    std::vector<fs::path> inputs, outputs;
    fs::path standard_output = {};  // where it goes; one of the outputs
};

/// The folder that is being made: what was asked for, and which steps are done. A step is done where it was run with
/// these arguments on inputs of the same contents, and its outputs are what they were then.
class Publication {
  public:
    Publication(fs::path folder, json asked, bool force, Progress& progress)
        : folder_(std::move(folder)), progress_(progress) {
        state_ = {{"format", "cerebellum-publication"},
                  {"version", 2},
                  {"asked", std::move(asked)},
                  {"done", json::object()}};
        const auto path = folder_ / state_name;
        if (fs::exists(path)) {
            const auto stored = try_parse_json(read_file(path)).value_or(json());
            const bool same = stored.is_object() && stored.value("done", json()).is_object() &&
                              stored.value("version", json()) == state_["version"] &&
                              stored.value("asked", json()) == state_["asked"];
            if (same && !force) {
                lock_.emplace(path);
                state_ = stored;
                return;
            }
            if (!force)
                throw Error(
                    fmt::format("{} holds something else that was published, or the same with other options; name "
                                "another folder, or --force to replace it",
                                folder_.string()));
        } else if (fs::exists(folder_) && !fs::is_empty(folder_) && !force) {
            throw Error(fmt::format("the folder {} is not empty; name another one, or --force to write into it",
                                    folder_.string()));
        }
        std::error_code error;
        fs::create_directories(folder_, error);
        if (error) throw Error(fmt::format("cannot make the folder {}: {}", folder_.string(), error.message()));
        lock_.emplace(path);
        store();
    }

    /// Runs it unless it is done. Throws Stopped with its exit code.
    void run(const Step& step) {
        auto record = record_of(step);
        if (const auto known = state_["done"].find(step.name); known != state_["done"].end()) {
            if (is_done(step, record, *known)) return;
            progress_.info(fmt::format("{}: run again, as what it was made of or what it made has changed", step.name));
        }
        progress_.check();
        progress_.info(fmt::format("{}: {}", step.name, shown(step.arguments)));
        if (const int code = run_self(step.arguments, step.standard_output); code != 0) throw Stopped{code};
        record["outputs"] = digests(step.outputs);
        state_["done"][step.name] = std::move(record);
        store();
    }

    struct Stopped {
        int code;
    };

  private:
    void store() const { write_file_atomically(folder_ / state_name, json_to_text(state_, 2) + "\n"); }

    /// Of a split model, of all its files.
    json digests(const std::vector<fs::path>& files) const {
        auto all = json::array();
        for (const auto& file : files) all.push_back(content_sha256(file, progress_));
        return all;
    }
    json record_of(const Step& step) const {
        return {{"arguments_sha256", sha256(json_to_text(json(step.arguments)))}, {"inputs", digests(step.inputs)}};
    }
    bool is_done(const Step& step, const json& now, const json& then) const {
        for (const auto* key : {"arguments_sha256", "inputs"})
            if (then.value(key, json()) != now[key]) return false;
        return std::ranges::all_of(step.outputs, [](const fs::path& file) { return fs::exists(file); }) &&
               then.value("outputs", json()) == digests(step.outputs);
    }

    fs::path folder_;
    Progress& progress_;
    json state_;
    std::optional<OutputLock> lock_;  // of the whole folder
};

/// Nothing that is read may be one of the files that are made in the folder.
void check_files(const Values& values, const fs::path& folder, const fs::path& file, const fs::path& journal) {
    OutputGuard guard(true);
    auto run = run_options(values.common, file.string());
    run.journal = journal;
    guard_run(guard, run);
    for (const auto& text : values.eval_texts) guard.reads("the text to evaluate on", text);
    for (const auto& results : values.results) guard.reads("the results", results);
    for (const auto& made :
         {file, recipe_path(file), type_file_path(file), imatrix_path(file), results_path(file), facts_path(file),
          findings_path(file), serving_path(file), report_path(file), derivation_path(file), folder / "README.md",
          folder / "Modelfile", folder / "SHA256SUMS", folder / state_name})
        guard.updates("a file of the publication", made);
    if (!values.eval_texts.empty()) guard.updates("the divergence", divergence_path(file));
    if (values.speed) guard.updates("the speed", speed_path(file));
    guard.check();
}

/// SHA-256 of every file, as 'sha256sum --check' reads them, from the facts that the card is made of, and of the
/// derivation.
void write_hashes(const fs::path& folder, const fs::path& facts, const fs::path& derivation, Progress& progress) {
    std::string text;
    const auto stored = parse_json(read_file(facts), facts.string());
    for (const auto& file : stored.value("files", json::array()))
        text += fmt::format("{}  {}\n", text_field(file, "sha256"), text_field(file, "name"));
    text += fmt::format("{}  {}\n", content_sha256(derivation, progress), derivation.filename().string());
    write_file_atomically(folder / "SHA256SUMS", text);
}

int publish(const Values& values, const CLI::App& app, const CLI::App& command) {
    TerminalProgress progress(values.common.quiet, values.common.verbose);
    auto goal_options = values.goal;
    const int context = settle_contexts(goal_options, values.common.context, values.window, progress);
    const auto goal = goal_of(goal_options);
    const auto effort = effort_of(values.common);
    const fs::path model = values.common.model;
    if (fs::is_directory(model))
        throw Error(fmt::format("{} is a folder; make a GGUF of it first: cerebellum convert {} -o model.gguf",
                                model.string(), model.string()));
    const auto source = GgufFile::open(model);
    for (const auto& path : values.results)
        if (!fs::exists(path)) throw Error(fmt::format("--results {}: there is no such file", path));
    const auto name = values.name.empty() ? base_name(model) + "-" + label_of(values.goal) : values.name;
    const fs::path folder = values.folder.empty() ? fs::path(name) : fs::path(values.folder);
    if (name.find('/') != std::string::npos) throw UsageError("--file-name is the name of a file, without folders");
    const auto file = folder / (name + ".gguf");
    const auto journal = values.common.journal.empty()
                             ? folder / default_journal(base_name(model) + ".gguf", "", effort).filename()
                             : fs::path(values.common.journal);
    const auto* quantize = app.get_subcommand("quantize");
    std::vector<std::string> making = {"quantize", model.string()};
    const auto given =
        shared_arguments(command, *quantize, {"--output", "--force", "--json", "--journal", "--quiet", "--verbose"});
    making.insert(making.end(), given.begin(), given.end());
    auto repeated = making;
    repeated.front() = "publish";
    repeated.insert(repeated.end(), {"--folder", folder.filename().string()});

    if (values.common.dry_run) {
        QuantizeOptions options;
        options.request.goal = goal;
        options.aim = aim_of(values.common);
        options.rounds = rounds_of(values.rounds, effort, options, values.constraints);
        if (!values.search.empty()) options.search_seconds = parse_seconds("--search", values.search);
        auto common = values.common;
        common.journal = journal.string();
        common.context = context;
        return dry_run(run_options(common, file.string()), job_request(model, options), common.json, progress);
    }
    const json asked = {{"cerebellum", CEREBELLUM_VERSION},
                        {"model", source.fingerprint(progress)},
                        {"name", name},
                        {"quantize", given},
                        {"eval_texts", values.eval_texts},
                        {"speed", values.speed},
                        {"results", values.results}};
    check_files(values, folder, file, journal);
    Publication publication(folder, asked, values.common.force, progress);
    const auto quiet = [&](std::vector<std::string> arguments) {
        if (values.common.quiet) arguments.emplace_back("--quiet");
        if (values.common.threads > 0)
            arguments.insert(arguments.end(), {"--threads", std::to_string(values.common.threads)});
        return arguments;
    };

    making.insert(making.end(), {"-o", file.string(), "--journal", journal.string()});
    if (values.common.quiet) making.emplace_back("--quiet");
    making.emplace_back("--force");  // whose folder it is has been found out already
    std::vector<fs::path> inputs = files_of_model(model);
    inputs.insert(inputs.end(), values.common.texts.begin(), values.common.texts.end());
    if (!values.common.imatrix.empty()) inputs.emplace_back(values.common.imatrix);
    publication.run({"quantize",
                     making,
                     inputs,
                     {file, recipe_path(file), type_file_path(file), imatrix_path(file), results_path(file)}});

    std::vector<std::string> results = values.results;
    if (!values.eval_texts.empty()) {
        std::vector<std::string> arguments = {"eval", "kld", model.string(), file.string(), "--json"};
        for (const auto& text : values.eval_texts) arguments.insert(arguments.end(), {"--text", text});
        const auto output = divergence_path(file);
        auto read = files_of_model(model);
        read.push_back(file);
        read.insert(read.end(), values.eval_texts.begin(), values.eval_texts.end());
        publication.run({"divergence", quiet(arguments), read, {output}, output});
        results.push_back(output.string());
    }
    if (values.speed) {
        const auto output = speed_path(file);
        publication.run({"speed", quiet({"eval", "speed", file.string(), "--json"}), {file}, {output}, output});
        results.push_back(output.string());
    }
    publication.run({"modelfile",
                     {"modelfile", file.string(), "-o", (folder / "Modelfile").string(), "--force", "--json"},
                     {file},
                     {folder / "Modelfile", serving_path(file)},
                     serving_path(file)});
    std::vector<fs::path> stored = {file, recipe_path(file), results_path(file)};
    stored.insert(stored.end(), results.begin(), results.end());
    std::vector<std::string> page = {"report",    model.string(),
                                     "--journal", journal.string(),
                                     "--recipe",  recipe_path(file).string(),
                                     "-o",        report_path(file).string(),
                                     "--results", results_path(file).string()};
    page.insert(page.end(), results.begin(), results.end());
    const auto aims = shared_arguments(command, *app.get_subcommand("report"),
                                       {"--output", "--force", "--json", "--journal", "--results"});
    page.insert(page.end(), aims.begin(), aims.end());
    // Where it was not given: the file was made of one rounding, whatever a journal of before may have of another.
    if (std::ranges::find(aims, "--rounding") == aims.end())
        page.insert(page.end(), {"--rounding", values.common.rounding});
    page.emplace_back("--force");
    if (has_report_page())
        publication.run({"report", page, stored, {report_path(file)}});
    else
        progress.info("report: left out, this build has no page (CEREBELLUM_REPORT=OFF)");
    std::vector<std::string> card = {"card",           file.string(), "--force",      "--journal",
                                     journal.string(), "--command",   shown(repeated)};
    const auto settings = shared_arguments(command, *app.get_subcommand("card"),
                                           {"--output", "--force", "--json", "--journal", "--results", "--quiet"});
    card.insert(card.end(), settings.begin(), settings.end());
    if (!results.empty()) {
        card.emplace_back("--results");
        card.insert(card.end(), results.begin(), results.end());
    }
    if (values.common.quiet) card.emplace_back("--quiet");
    for (const auto& made : {serving_path(file), report_path(file)})
        if (fs::exists(made)) stored.push_back(made);
    publication.run({"card", card, stored, {folder / "README.md", facts_path(file), findings_path(file)}});
    write_derivation(derivation_path(file), {source, file, values.common.texts, journal}, progress);
    write_hashes(folder, facts_path(file), derivation_path(file), progress);

    std::vector<std::string> files;
    for (const auto& entry : fs::directory_iterator(folder))
        if (entry.path().extension() != ".lock") files.push_back(entry.path().filename().string());
    std::ranges::sort(files);
    if (values.common.json)
        fmt::print("{}\n",
                   json_to_text(json{{"folder", folder.string()}, {"file", file.string()}, {"files", files}}, 2));
    else
        fmt::print("{}: {}\n", folder.string(), fmt::join(files, ", "));
    return 0;
}

}  // namespace

Command add_publish(CLI::App& app) {
    auto values = std::make_shared<Values>();
    auto* command = app.add_subcommand(
        "publish",
        "Everything for a folder to publish: file, verification, report, model card, Modelfile, results, hashes");
    command->footer(
        "Examples:\n  cerebellum publish model-f16.gguf --size 4.25bpw\n"
        "  cerebellum publish model-bf16.gguf --vram 12GiB --serve-ctx 16384 --folder out --license apache-2.0 "
        "--base-model "
        "org/model\n\n"
        "Runs 'quantize', 'eval' (with --eval-text or --speed), 'modelfile', 'report' and 'card'. Interrupt it at any "
        "time: the "
        "same\n"
        "command goes on where it stopped, and does nothing where all is done. A folder that holds anything else is "
        "left\n"
        "alone without --force.");
    add_model(*command, values->common);
    command->add_option("--folder", values->folder, "The folder to make (default: the file's name without .gguf, here)")
        ->type_name("FOLDER");
    command->add_flag("--force", values->common.force, "Write into the folder whatever it holds");
    command
        ->add_option("--file-name", values->name, "Name of the file without .gguf (default: the model's, and the size)")
        ->type_name("NAME");
    add_goal(*command, values->goal);
    add_constraints(*command, values->constraints);
    add_measuring(*command, values->common);
    add_dry_run(*command, values->common);
    add_window(*command, values->window);
    add_aim(*command, values->common);
    add_bettering(*command, values->rounds, values->search);
    add_scaling(*command, values->scaling);
    add_compare(*command, values->compare);
    const char* group = "Evaluations for the card";
    command
        ->add_option("--eval-text", values->eval_texts,
                     "Measure perplexity and divergence on this text, which nothing was chosen on; repeatable")
        ->type_name("FILE")
        ->group(group);
    command->add_flag("--speed", values->speed, "Measure tokens per second on this machine")->group(group);
    command->add_option("--results", values->results, "Stored evaluations to put into the card, as 'card' takes them")
        ->type_name("FILE")
        ->group(group);
    add_card_settings(*command, values->settings);
    add_json(*command, values->common);
    return [&app, command, values] {
        try {
            return publish(*values, app, *command);
        } catch (const Publication::Stopped& stopped) {
            return stopped.code;
        }
    };
}

}  // namespace cerebellum::cli
