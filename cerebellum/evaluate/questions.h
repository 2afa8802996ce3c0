#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace cerebellum {

enum class Benchmark { hellaswag, winogrande, arc, mmlu, mmlu_redux, truthfulqa, choice };

/// By the names that the command line uses; throws UsageError listing them.
Benchmark parse_benchmark(std::string_view name);
std::string benchmark_name(Benchmark benchmark);

/// A multiple-choice question as its file states it.
struct Question {
    std::string id;
    std::string group;  // MMLU's subject; empty where there is none
    std::string text;   // HellaSwag: what the endings continue. WinoGrande: the sentence with its _
    std::vector<std::string> choices;
    std::vector<int> right;  // indices into choices; one, except where a file labels several as true
};

/// The questions of a file, and those that were left out, by reason.
struct QuestionSet {
    std::vector<Question> questions;
    std::map<std::string, int> excluded;
    /// Corrections made on the way, by kind, for example "answer corrected".
    std::map<std::string, int> corrected;
};

/// Reads a file in one of the benchmark's formats (docs/evaluation.md). Throws Error naming the file and line where
/// a record is not of any, and where there is no question at all.
QuestionSet load_questions(Benchmark benchmark, const std::filesystem::path& path);

/// How a selection was made, for the record: "all", or the words of its rule.
struct Selection {
    std::vector<Question> questions;
    std::string rule;
};

/// `count` of the questions (0: all). HellaSwag and WinoGrande: those that llama-perplexity selects for the same number
/// of tasks. Others: the ones with the smallest SHA-256 of their id, so that more or fewer questions in the file change
/// little.
Selection select_questions(Benchmark benchmark, std::vector<Question> questions, int count);
/// The first `count` of the file (0: all).
Selection first_questions(std::vector<Question> questions, int count);

/// An MMLU-Redux error type in one spelling ("wrong groundtruth", "ok", …): lower case, single blanks, trimmed.
std::string normalised_error_type(std::string_view text);
/// The choices that a correction names: indices, letters, lists of these, or the text of a choice; empty if it names
/// none.
std::vector<int> parse_correction(std::string_view text, const std::vector<std::string>& choices);
/// A Python list of strings, as MMLU-Redux writes its choices. Throws Error where it is none.
std::vector<std::string> parse_python_list(std::string_view text);

}  // namespace cerebellum
