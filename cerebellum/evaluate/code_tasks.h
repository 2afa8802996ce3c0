#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "cerebellum/evaluate/chat_client.h"
#include "cerebellum/evaluate/sandbox.h"

namespace cerebellum {

/// A task of HumanEval or HumanEval+, in the fields of its JSONL.
struct CodeTask {
    std::string id;           // task_id
    std::string prompt;       // imports, helpers, signature and docstring
    std::string entry_point;  // the function that is asked for
    std::string test;         // defines check(candidate)
};

/// Throws Error naming the file and line where a record is none.
std::vector<CodeTask> load_code_tasks(const std::filesystem::path& path);

/// What a chat is asked.
std::string code_prompt(const CodeTask& task);

/// A self-contained solution out of a reply: what comes before the function in the prompt (imports, helpers), and the
/// function. The last fenced block that defines the function counts, else the text without fences from its first line
/// of code on, else the reply is taken as the function's body, behind the prompt. Indentation is kept. Empty where the
/// reply is blank.
std::string extract_solution(std::string_view reply, const CodeTask& task);

/// The program that runs the task's test on a solution and prints `token` behind it: ending early is no success.
std::string judging_program(const CodeTask& task, const std::string& solution, const std::string& token);

struct CodeVerdict {
    bool passed = false;
    std::string reason;  // the end of the run, and the last line it printed
};
CodeVerdict judge_solution(const CodeTask& task, const std::string& solution, const Sandbox& sandbox);

/// The record of an answer for the audit log, judged.
nlohmann::json code_record(const CodeTask& task, const std::string& prompt, const ChatReply& reply,
                           const Sandbox& sandbox);
/// Sets "parsed", "correct", "verdict" and "metrics" of a record from its "raw", by this version's extraction.
void judge_code(nlohmann::json& record, const CodeTask& task, const Sandbox& sandbox);

/// The solutions of records in the JSON lines that EvalPlus' own evaluator reads: task_id, solution.
std::string evalplus_samples(const std::vector<nlohmann::json>& records);

}  // namespace cerebellum
