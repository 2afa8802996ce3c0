#include "cerebellum/evaluate/code_tasks.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "cerebellum/core/compressed_file.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/hash.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/evaluate/answer_parser.h"
#include "cerebellum/evaluate/question_limits.h"

namespace cerebellum {

namespace {

std::vector<std::string> lines_of(std::string_view text) {
    std::vector<std::string> lines;
    std::istringstream stream{std::string(text)};
    for (std::string line; std::getline(stream, line);) {
        if (line.ends_with('\r')) line.pop_back();
        lines.push_back(line);
    }
    return lines;
}

std::string joined(const std::vector<std::string>& lines, std::size_t begin, std::size_t end) {
    std::string text;
    for (std::size_t i = begin; i < end; ++i) text += lines[i] + "\n";
    return text;
}

bool is_blank(std::string_view line) {
    return line.find_first_not_of(" \t") == std::string_view::npos;
}

std::size_t indentation(std::string_view line) {
    return std::min(line.find_first_not_of(" \t"), line.size());
}

bool is_definition_of(std::string_view line, const std::string& function) {
    const auto text = line.substr(indentation(line));
    const auto rest = text.starts_with("async def ") ? text.substr(10)
                      : text.starts_with("def ")     ? text.substr(4)
                                                     : std::string_view();
    return rest.starts_with(function) && rest.size() > function.size() &&
           (rest[function.size()] == '(' || rest[function.size()] == ' ' || rest[function.size()] == '[');
}

bool defines(const std::vector<std::string>& lines, const std::string& function) {
    return std::ranges::any_of(lines, [&](const std::string& line) { return is_definition_of(line, function); });
}

/// Takes away what every line is indented by, where the function itself is: a block inside a list item.
std::vector<std::string> outdented(std::vector<std::string> lines, const std::string& function) {
    const auto at =
        std::ranges::find_if(lines, [&](const std::string& line) { return is_definition_of(line, function); });
    if (at == lines.end() || indentation(*at) == 0) return lines;
    auto common = indentation(*at);
    for (const auto& line : lines)
        if (!is_blank(line)) common = std::min(common, indentation(line));
    for (auto& line : lines) line.erase(0, std::min(common, line.size()));
    return lines;
}

/// The contents of ``` and ~~~ fences, wherever a line begins with one; the last may be left open.
std::vector<std::vector<std::string>> fenced_blocks(const std::vector<std::string>& lines) {
    std::vector<std::vector<std::string>> blocks;
    std::string fence;
    for (const auto& line : lines) {
        const auto text = std::string_view(line).substr(indentation(line));
        if (fence.empty() && (text.starts_with("```") || text.starts_with("~~~"))) {
            fence = text.substr(0, text.find_first_not_of(text.front()));
            blocks.emplace_back();
        } else if (!fence.empty() && text.starts_with(fence) && is_blank(text.substr(fence.size()))) {
            fence.clear();
        } else if (!fence.empty()) {
            blocks.back().push_back(line);
        }
    }
    return blocks;
}

bool is_blank_character(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

bool is_word_character(char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
}

/// Where the characters end, from `at` on, that the test is true of.
template <typename Test>
std::size_t end_of(std::string_view line, std::size_t at, Test&& test) {
    while (at < line.size() && test(line[at])) ++at;
    return at;
}

/// "x = 1", "x: list[int] = []", and no "x == 1".
bool is_assignment(std::string_view line) {
    const auto equals = [&](std::size_t at) {
        at = end_of(line, at, is_blank_character);
        return at + 1 < line.size() && line[at] == '=' && line[at + 1] != '=';
    };
    const auto name = end_of(line, 0, is_word_character);
    if (name == 0) return false;
    if (equals(name)) return true;
    const auto colon = end_of(line, name, is_blank_character);
    if (colon >= line.size() || line[colon] != ':') return false;
    const auto type = end_of(line, colon + 1, is_blank_character);
    const auto type_end = end_of(line, type, [](char c) {
        return is_word_character(c) || std::string_view("[], .").find(c) != std::string_view::npos;
    });
    const bool blank = line.substr(colon + 1, type - colon - 1).find(' ') != std::string_view::npos;
    return (type_end > type || blank) && equals(type_end);
}

/// The line of a program, going by how it begins. Scanned by hand: std::regex overflows the stack on a long one.
bool looks_like_code(std::string_view line) {
    const auto after = [&](std::string_view word) {  // the place behind the word and blanks; 0 where they are not there
        if (!line.starts_with(word)) return std::size_t{0};
        const auto end = end_of(line, word.size(), is_blank_character);
        return end > word.size() ? end : std::size_t{0};
    };
    const auto word_at = [&](std::size_t at) { return at > 0 && at < line.size() && is_word_character(line[at]); };
    if (word_at(after("import")) || word_at(after("def")) || word_at(after("class"))) return true;
    if (line.starts_with('@') && word_at(1)) return true;
    if (line.starts_with("try:") || line.find_first_of("#])}") == 0) return true;
    if (const auto at = after("async"); at > 0 && line.substr(at).starts_with("def"))
        if (at + 3 < line.size() && is_blank_character(line[at + 3])) return true;
    for (const auto word : {"if", "for", "while", "with"})
        if (after(word) > 0 && line.find(':') != std::string_view::npos) return true;
    if (const auto module = after("from"); module > 0) {
        const auto end = end_of(line, module, [](char c) { return !is_blank_character(c); });
        const auto rest = line.substr(end_of(line, end, is_blank_character));
        if (end > module && end < line.size() && rest.starts_with("import") &&
            (rest.size() == 6 || !is_word_character(rest[6])))
            return true;
    }
    return is_assignment(line);
}

/// From the first line of code to the last, where code and prose are mixed without fences.
std::string unfenced_code(const std::vector<std::string>& lines, const std::string& function) {
    std::size_t begin = 0;
    while (begin < lines.size() && !looks_like_code(lines[begin])) ++begin;
    std::size_t end = begin;
    bool seen = false;
    for (; end < lines.size(); ++end) {
        const auto& line = lines[end];
        seen |= is_definition_of(line, function);
        if (seen && !is_blank(line) && indentation(line) == 0 && !looks_like_code(line)) break;
    }
    return joined(lines, begin, end);
}

/// What the prompt has before the function that is asked for.
std::string preamble(const CodeTask& task) {
    const auto lines = lines_of(task.prompt);
    for (std::size_t i = 0; i < lines.size(); ++i)
        if (is_definition_of(lines[i], task.entry_point)) return joined(lines, 0, i);
    return "";
}

/// As the body of the function: indented as it is, or by four blanks where its first line is not.
std::string as_body(const std::vector<std::string>& lines) {
    const auto first = std::ranges::find_if(lines, [](const std::string& line) { return !is_blank(line); });
    const std::string more = first != lines.end() && indentation(*first) == 0 ? "    " : "";
    std::string body;
    for (const auto& line : lines) body += is_blank(line) ? "\n" : more + line + "\n";
    return body;
}

std::string random_token() {
    std::random_device random;
    return fmt::format("passed-{:08x}{:08x}{:08x}", random(), random(), random());
}

std::string last_line(const std::string& output) {
    std::string last;
    for (const auto& line : lines_of(output))
        if (!is_blank(line)) last = line;
    constexpr std::size_t enough = 200;
    return last.substr(0, enough);
}

}  // namespace

std::vector<CodeTask> load_code_tasks(const std::filesystem::path& path) {
    std::vector<CodeTask> tasks;
    const auto lines = lines_of(read_unpacked(path));
    for (std::size_t i = 0; i < lines.size(); ++i) {
        if (is_blank(lines[i])) continue;
        const auto record = try_parse_json(lines[i], question_limits).value_or(nlohmann::json());
        CodeTask task;
        for (const auto& [name, target] : {std::pair{"task_id", &task.id},
                                           {"prompt", &task.prompt},
                                           {"entry_point", &task.entry_point},
                                           {"test", &task.test}}) {
            if (!record.is_object() || !record.contains(name) || !record[name].is_string())
                throw Error(fmt::format("{}:{}: not a task of HumanEval: it has no '{}'", path.string(), i + 1, name));
            *target = record[name].get<std::string>();
        }
        tasks.push_back(std::move(task));
    }
    if (tasks.empty()) throw Error(fmt::format("{} has no tasks", path.string()));
    return tasks;
}

std::string code_prompt(const CodeTask& task) {
    return "Please provide a self-contained Python script that solves the following problem in a markdown code block:\n"
           "```python\n" +
           task.prompt + (task.prompt.ends_with('\n') ? "" : "\n") + "```\n";
}

std::string extract_solution(std::string_view reply, const CodeTask& task) {
    const auto lines = lines_of(without_reasoning(reply));
    if (std::ranges::all_of(lines, [](const std::string& line) { return is_blank(line); })) return "";
    const auto blocks = fenced_blocks(lines);
    const auto last = std::find_if(blocks.rbegin(), blocks.rend(),
                                   [&](const auto& block) { return defines(block, task.entry_point); });
    if (last != blocks.rend()) {
        const auto whole = outdented(*last, task.entry_point);
        return preamble(task) + joined(whole, 0, whole.size());
    }
    if (defines(lines, task.entry_point) && blocks.empty())
        return preamble(task) + unfenced_code(lines, task.entry_point);
    const auto& body = blocks.empty() ? lines : blocks.front();
    return task.prompt + (task.prompt.ends_with('\n') ? "" : "\n") + as_body(body);
}

std::string judging_program(const CodeTask& task, const std::string& solution, const std::string& token) {
    return fmt::format("{}\n\n{}\n\ncheck({})\nprint('\\n{}')\n", solution, task.test, task.entry_point, token);
}

CodeVerdict judge_solution(const CodeTask& task, const std::string& solution, const Sandbox& sandbox) {
    if (is_blank(solution)) return {false, "no solution"};
    const auto token = random_token();
    const auto result = sandbox.run(judging_program(task, solution, token));
    const bool passed = result.end == SandboxResult::End::exited && result.code == 0 &&
                        result.output.find("\n" + token + "\n") != std::string::npos;
    if (passed) return {true, "passed"};
    if (result.end == SandboxResult::End::exited && result.code == 0) return {false, "ended before the test was over"};
    return {false, fmt::format("{}: {}", describe(result), last_line(result.output))};
}

nlohmann::json code_record(const CodeTask& task, const std::string& prompt, const ChatReply& reply,
                           const Sandbox& sandbox) {
    nlohmann::json record = {{"id", task.id},
                             {"prompt_sha256", sha256(prompt)},
                             {"raw", reply.text},
                             {"finish", reply.finish},
                             {"prompt_tokens", reply.prompt_tokens},
                             {"completion_tokens", reply.completion_tokens},
                             {"ms", std::round(reply.milliseconds)}};
    if (!reply.reasoning.empty()) record["reasoning"] = reply.reasoning;
    if (!reply.failure.empty()) record["failed"] = reply.failure;
    judge_code(record, task, sandbox);
    return record;
}

void judge_code(nlohmann::json& record, const CodeTask& task, const Sandbox& sandbox) {
    const auto solution = extract_solution(record.at("raw").get<std::string>(), task);
    const auto verdict = judge_solution(task, solution, sandbox);
    record["parsed"] = solution;
    record["correct"] = verdict.passed;
    record["verdict"] = verdict.reason;
    record["metrics"] = {{"pass@1", verdict.passed ? 1.0 : 0.0}};
}

std::string evalplus_samples(const std::vector<nlohmann::json>& records) {
    std::string lines;
    for (const auto& record : records)
        lines += json_to_text(nlohmann::json{{"task_id", record.at("id")}, {"solution", record.at("parsed")}}) + "\n";
    return lines;
}

}  // namespace cerebellum
