#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cerebellum/cli/commands.h"
#include "cerebellum/core/progress.h"
#include "cerebellum/evaluate/questions.h"
#include "cerebellum/evaluate/token_scores.h"

namespace cerebellum::cli {

/// The subcommands of `cerebellum eval`.
Command add_eval_ppl(CLI::App& group);
Command add_eval_kld(CLI::App& group);
Command add_eval_choice(CLI::App& group);
Command add_eval_chat(CLI::App& group);
Command add_eval_code(CLI::App& group);
Command add_eval_speed(CLI::App& group);
Command add_eval_serve(CLI::App& group);
Command add_eval_audit(CLI::App& group);
Command add_eval_rejudge(CLI::App& group);

/// Options that every evaluation has which runs a model itself.
struct EvalRunOptions {
    int threads = 0;
    std::optional<int> gpu_layers;
    std::string device, device_memory;
    bool json = false;
    bool quiet = false;
    bool verbose = false;

    int n_threads() const;
    /// Where models run. Throws UsageError where there is no such device, Error where a server does not answer.
    RunPlace place() const;
    /// Notes in a result where it was measured: "gpu_layers", and "device" where one was named.
    void note_place(nlohmann::json& result) const;
};
void add_eval_run(CLI::App& command, EvalRunOptions& options);

/// Options of the evaluations on text.
struct EvalTextOptions {
    std::vector<std::string> texts;
    int context = 0;
    int windows = 0;
    bool llama_perplexity = false;
    bool wikitext2 = false;
    std::string data;
};
void add_eval_text(CLI::App& command, EvalTextOptions& options);
/// The text and how it is scored. Throws UsageError where the options contradict each other, Error where there is no
/// such text.
struct EvalText {
    std::string text;
    TextScoring scoring;
};
EvalText load_eval_text(const EvalTextOptions& options, const EvalRunOptions& run,
                        const std::filesystem::path& reference);
/// What has to be known to repeat the figures: text, convention, context, versions.
nlohmann::json describe(const EvalTextOptions& options, const EvalText& text, const EvalRunOptions& run);

/// Which of a file's questions are asked.
struct EvalQuestionOptions {
    std::string questions, data;
    int count = 0;
    int first = 0;
};
void add_eval_questions(CLI::App& command, EvalQuestionOptions& options);
/// The questions, their file, and what the header of a log says about both.
struct EvalQuestions {
    std::filesystem::path file;
    Selection selection;
    nlohmann::json header;
    std::string name_suffix;  // of the log's name: "-200" where not all are asked
};
/// Throws UsageError or Error where there are no such questions.
EvalQuestions load_eval_questions(Benchmark benchmark, const EvalQuestionOptions& options);

/// Where scripts/fetch-data puts texts and questions: --data, $CEREBELLUM_DATA, or the user's cache.
std::filesystem::path data_folder(const std::string& option);
/// The file of the tasks of "humaneval" or "humaneval-plus": as given, else the one of scripts/fetch-data. Throws
/// UsageError where the benchmark is another, Error where there is no such file.
std::filesystem::path code_tasks_file(const std::string& benchmark, const std::string& option, const std::string& data);
/// What a result says about the file it is of: "file" (its name), "bytes", "bpw", "sha256" (of a split model, over all
/// of its files one behind the other). Throws Error where it is no GGUF. Hashing a large file takes its time.
nlohmann::json describe_file(const std::filesystem::path& path, Progress& progress);
/// Adds what says of which model the file is: its own fingerprint, and that of the source where the file names one.
void add_origin(nlohmann::json& described, const std::filesystem::path& path, Progress& progress);
/// The same of several.
std::vector<nlohmann::json> describe_files(const std::vector<std::string>& paths, Progress& progress);
/// The first two cells of a row of a table about files, and the third: name, size, bits per weight.
std::vector<std::string> file_cells(const nlohmann::json& described);

}  // namespace cerebellum::cli
