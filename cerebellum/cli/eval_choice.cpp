#include <fmt/format.h>

#include <cmath>

#include "cerebellum/cli/eval_commands.h"
#include "cerebellum/cli/eval_report.h"
#include "cerebellum/cli/options.h"
#include "cerebellum/cli/terminal.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/hash.h"
#include "cerebellum/evaluate/choice_scores.h"
#include "cerebellum/llama/placement.h"
#include "cerebellum/version.h"

namespace cerebellum::cli {

namespace fs = std::filesystem;

namespace {

struct Values {
    EvalRunOptions run;
    std::string benchmark;
    std::vector<std::string> files;
    EvalQuestionOptions questions;
    std::string examples;
    std::string out = "cerebellum-eval";
    int shots = 0;
    bool no_sharing = false;
};

/// Where solved examples come from; empty where none are wanted.
fs::path examples_file(const Values& values, Benchmark benchmark) {
    if (values.shots == 0) return {};
    auto path = fs::path(values.examples);
    if (path.empty() && (benchmark == Benchmark::mmlu || benchmark == Benchmark::mmlu_redux))
        path = data_folder(values.questions.data) / "mmlu-dev.jsonl";
    if (path.empty()) throw UsageError("--shots needs the --examples FILE that they come from");
    return path;
}

nlohmann::json record_of(const Question& question, const ChoiceScore& score, const std::string& metric) {
    auto gold = nlohmann::json::array();
    for (const int right : question.right) gold.push_back(letter_of(right));
    nlohmann::json record = {{"id", question.id},
                             {"prompt_sha256", score.prompt_sha256},
                             {"gold", gold},
                             {"log_probs", score.log_probs},
                             {"tokens", score.token_counts},
                             {"metrics", score.values},
                             {"ms", std::round(score.milliseconds * 1000.0) / 1000.0}};
    if (!question.group.empty()) record["group"] = question.group;
    for (const auto& [name, pick] : score.picks) record["picks"][name] = letter_of(pick);
    const auto decisive = score.picks.contains(metric) ? metric : "acc";
    record["parsed"] = record["picks"][decisive];
    record["correct"] = score.values.at(decisive) > 0.5;
    return record;
}

/// Asks what the log does not have yet.
AuditFile ask(const Values& values, Benchmark benchmark, const fs::path& file, const Selection& selection,
              const std::vector<Question>& examples, AuditLog& log, Progress& progress) {
    std::vector<Question> open;
    for (const auto& question : selection.questions)
        if (!log.has(question.id)) open.push_back(question);
    if (const auto done = selection.questions.size() - open.size(); done > 0)
        progress.info(
            fmt::format("{}: {} of {} questions were asked before", file.string(), done, selection.questions.size()));
    if (!open.empty()) {
        // The longest prompts and their answers, several questions at a time.
        constexpr int rows = 512, cached_tokens = 4096;
        const auto needed = working_bytes(GgufFile::open(file), rows, cached_tokens);
        const auto model = Model::load_to_run(file, fitted(values.run.place(), file, needed));
        const auto metric = headline_metric(benchmark);
        score_choices(
            model, open, examples, {benchmark, values.shots, values.run.n_threads(), !values.no_sharing},
            [&](std::size_t i, const ChoiceScore& score) { log.append(record_of(open[i], score, metric)); }, progress);
    }
    return read_audit_log(log.path());
}

int run_choice(const Values& values) {
    TerminalProgress progress(values.run.quiet, values.run.verbose);
    const auto benchmark = parse_benchmark(values.benchmark);
    auto [file, selection, header, suffix] = load_eval_questions(benchmark, values.questions);
    std::vector<Question> examples;
    if (const auto path = examples_file(values, benchmark); !path.empty()) {
        // MMLU-Redux's examples are MMLU's.
        examples = load_questions(benchmark == Benchmark::mmlu_redux ? Benchmark::mmlu : benchmark, path).questions;
        header["examples_sha256"] = sha256(read_file(path));
    }
    for (const auto& question : selection.questions) (void)examples_for(question, examples, values.shots);
    header.update({{"mode", "logprob"},
                   {"metric", headline_metric(benchmark)},
                   {"shots", values.shots},
                   {"shared_prefixes", !values.no_sharing},
                   {"cerebellum", CEREBELLUM_VERSION},
                   {"llama_cpp", CEREBELLUM_LLAMA_VERSION}});
    values.run.note_place(header);
    std::vector<EvaluatedFile> evaluated;
    const auto models = describe_files(values.files, progress);
    auto name = values.benchmark + suffix;
    if (values.shots > 0) name += fmt::format("-{}shot", values.shots);
    if (values.no_sharing) name += "-unshared";
    for (std::size_t i = 0; i < values.files.size(); ++i) {
        header["model"] = models[i];
        AuditLog log(log_path(values.out, name, models[i], file), header);
        evaluated.push_back({log.path(), ask(values, benchmark, values.files[i], selection, examples, log, progress)});
    }
    return report_evaluations(evaluated, values.run.json, progress);
}

}  // namespace

Command add_eval_choice(CLI::App& group) {
    auto values = std::make_shared<Values>();
    auto* command = group.add_subcommand("choice", "Multiple choice by the probabilities of the choices");
    command->footer(
        "Examples:\n  cerebellum eval choice hellaswag model-ours.gguf model-Q4_K_M.gguf --count 2000\n"
        "  cerebellum eval choice mmlu model-ours.gguf --shots 5\n"
        "  cerebellum eval choice choice model-ours.gguf --questions mine.jsonl\n\n"
        "Benchmarks: hellaswag, winogrande, arc, mmlu, mmlu-redux, truthfulqa, and choice for questions of your own\n"
        "(docs/evaluation.md describes the formats; scripts/fetch-data downloads the sets). Every answer is a line of "
        "a\n"
        "JSONL file in --out, and a run that was stopped goes on where it stopped. All files but the first are "
        "compared\n"
        "with the first, question by question: questions won and lost, and the p-value of McNemar's exact test.");
    command->add_option("benchmark", values->benchmark, "Which questions these are")
        ->required()
        ->type_name("BENCHMARK");
    command->add_option("files", values->files, "GGUF files")->required()->type_name("FILE.gguf");
    add_eval_questions(*command, values->questions);
    command->add_option("--shots", values->shots, "Solved examples in front of each question")
        ->check(CLI::Range(0, 64))
        ->capture_default_str();
    command->add_option("--examples", values->examples, "File of the examples (default for MMLU: mmlu-dev.jsonl)")
        ->type_name("FILE");
    command->add_flag("--no-shared-prefixes", values->no_sharing,
                      "Evaluate every choice from its first token on: slow, to check the sharing against");
    command->add_option("--out", values->out, "Folder of the answers and summaries")
        ->type_name("FOLDER")
        ->capture_default_str();
    add_eval_run(*command, values->run);
    add_device_memory(*command, values->run.device_memory);
    return [values] { return run_choice(*values); };
}

}  // namespace cerebellum::cli
