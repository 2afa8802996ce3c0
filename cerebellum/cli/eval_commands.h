#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cerebellum/cli/commands.h"
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
    int gpu_layers = 0;
    bool json = false;
    bool quiet = false;
    bool verbose = false;

    int n_threads() const;
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
EvalText load_eval_text(const EvalTextOptions& options, const EvalRunOptions& run);
/// What has to be known to repeat the figures: text, convention, context, versions.
nlohmann::json describe(const EvalTextOptions& options, const EvalText& text);

/// Where scripts/fetch-data puts texts and questions: --data, $CEREBELLUM_DATA, or the user's cache.
std::filesystem::path data_folder(const std::string& option);
/// The questions' file: as given, else the one of scripts/fetch-data. Throws Error where there is none.
std::filesystem::path questions_file(Benchmark benchmark, const std::string& option, const std::string& data);
/// "file", "bytes", "bpw" of a GGUF. Throws Error where it is none.
nlohmann::json describe_file(const std::filesystem::path& path);
/// The first two cells of a row of a table about files, and the third: name, size, bits per weight.
std::vector<std::string> file_cells(const nlohmann::json& described);

}  // namespace cerebellum::cli
