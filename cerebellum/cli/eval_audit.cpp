#include <fmt/format.h>

#include <chrono>
#include <ctime>
#include <map>

#include "cerebellum/cli/eval_commands.h"
#include "cerebellum/cli/eval_report.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/hash.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/visible_text.h"
#include "cerebellum/evaluate/answer_parser.h"
#include "cerebellum/evaluate/chat_choice.h"
#include "cerebellum/evaluate/code_tasks.h"
#include "cerebellum/evaluate/eval_summary.h"
#include "cerebellum/evaluate/rejudge.h"
#include "cerebellum/version.h"

namespace cerebellum::cli {

namespace {

struct AuditValues {
    std::vector<std::string> logs;
    int examples = 5;
    bool json = false;
};

struct RejudgeValues {
    std::vector<std::string> logs;
    std::string reason;
    std::string tasks, data;
    bool no_sandbox = false;
    bool json = false;
};

std::string one_line(const std::string& text, std::size_t length = 70) {
    std::string cut(cut_utf8(text, length));
    for (char& c : cut)
        if (c == '\n' || c == '\r' || c == '\t') c = ' ';
    return visible(cut) + (cut.size() < text.size() ? "…" : "");
}

std::string raw_answer(const AuditFile& log, const std::string& id) {
    for (const auto& record : log.records)
        if (record["id"] == id) return record.value("raw", "");
    return "";
}

void print_ids(const char* what, const AuditFile& log, const std::vector<std::string>& ids, int examples) {
    if (ids.empty()) return;
    fmt::print("  {} {}\n", ids.size(), what);
    for (std::size_t i = 0; i < ids.size() && static_cast<int>(i) < examples; ++i)
        fmt::print("    {}: {}\n", visible(ids[i]), one_line(raw_answer(log, ids[i])));
}

int run_audit(const AuditValues& values) {
    int code = 0;
    auto json = nlohmann::json::array();
    for (const auto& path : values.logs) {
        const auto log = read_audit_log(path);
        const auto findings = audit(log);
        const auto refusal = publish_summary(path, log).refusal;
        if (!refusal.empty()) code = 1;
        auto clusters = nlohmann::json::array();
        for (const auto& [raw, ids] : findings.identical_wrong) clusters.push_back({{"raw", raw}, {"ids", ids}});
        json.push_back({{"log", path},
                        {"questions", findings.questions},
                        {"unparsed", findings.unparsed},
                        {"empty", findings.empty},
                        {"identical_wrong", clusters},
                        {"published", refusal.empty()},
                        {"refusal", refusal}});
        if (values.json) continue;
        fmt::print("{}: {} answers\n", visible(path), findings.questions);
        print_ids("could not be parsed", log, findings.unparsed, values.examples);
        print_ids("are empty", log, findings.empty, values.examples);
        for (const auto& [raw, ids] : findings.identical_wrong)
            fmt::print("  {} times the same wrong answer: {}\n", ids.size(), one_line(raw));
        fmt::print("  {}\n", visible(refusal.empty() ? "summary: " + summary_path(path).string() : refusal));
    }
    if (values.json) fmt::print("{}\n", visible_lines(json_to_text(json, 2)));
    return code;
}

std::string now_utc() {
    const auto now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
    std::tm parts{};
    gmtime_r(&now, &parts);
    return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z", parts.tm_year + 1900, parts.tm_mon + 1, parts.tm_mday,
                       parts.tm_hour, parts.tm_min, parts.tm_sec);
}

/// Programs run again, in a sandbox.
Rejudgement rejudge_code(const RejudgeValues& values, AuditFile& log) {
    const auto file = code_tasks_file(log.header.value("benchmark", ""), values.tasks, values.data);
    if (sha256(read_file(file)) != log.header.value("questions_sha256", ""))
        throw Error(fmt::format("{} is not the file of tasks that the answers are to; name that one by --tasks",
                                file.string()));
    std::map<std::string, CodeTask> tasks;
    for (auto& task : load_code_tasks(file)) tasks.emplace(task.id, std::move(task));
    const Sandbox sandbox(values.no_sandbox ? Sandbox::Isolation::limits_only : Sandbox::Isolation::full, {});
    return rejudge(log, [&](nlohmann::json& record) {
        const auto task = tasks.find(record["id"].get<std::string>());
        if (task == tasks.end())
            throw Error(fmt::format("{} has no task '{}', which there is an answer to", file.string(),
                                    record["id"].get<std::string>()));
        judge_code(record, task->second, sandbox);
    });
}

int run_rejudge(const RejudgeValues& values) {
    auto json = nlohmann::json::array();
    int code = 0;
    for (const auto& path : values.logs) {
        auto log = read_audit_log(path);
        const bool programs = log.header.value("mode", "") == "code";
        const auto result = programs ? rejudge_code(values, log) : rejudge(log, judge_choice);
        const nlohmann::json entry = {{"date", now_utc()},
                                      {"reason", values.reason},
                                      {"old_score", result.old_score},
                                      {"new_score", result.new_score},
                                      {"changed", result.changed},
                                      {"parser", answer_parser_version},
                                      {"cerebellum", CEREBELLUM_VERSION}};
        if (!result.changed.empty()) {
            log.header["rejudged"].push_back(entry);
            write_audit_log(path, log);
            if (programs) write_file_atomically(samples_path(path), evalplus_samples(log.records));
        }
        const auto refusal = publish_summary(path, log).refusal;
        if (!refusal.empty()) code = 1;
        json.push_back({{"log", path}, {"rejudgement", entry}, {"refusal", refusal}});
        if (values.json) continue;
        fmt::print("{}: {:.2f} % -> {:.2f} %, {} answers judged differently\n", visible(path), 100.0 * result.old_score,
                   100.0 * result.new_score, result.changed.size());
        if (!refusal.empty()) fmt::print("  {}\n", visible(refusal));
    }
    if (values.json) fmt::print("{}\n", visible_lines(json_to_text(json, 2)));
    return code;
}

}  // namespace

Command add_eval_audit(CLI::App& group) {
    auto values = std::make_shared<AuditValues>();
    auto* command = group.add_subcommand("audit", "Look for answers that were misread, and publish the summary");
    command->footer(
        "Example:\n  cerebellum eval audit cerebellum-eval/*.jsonl\n\n"
        "Lists answers that could not be parsed, empty ones, and the same wrong answer to three or more questions. "
        "The\n"
        "summary is written only where all questions were asked and at most 0.5 % of the answers are unparsed or "
        "empty;\n"
        "else the exit code is 1.");
    command->add_option("logs", values->logs, "Answers, as the evaluations write them")
        ->required()
        ->type_name("FILE.jsonl");
    command->add_option("--show", values->examples, "How many of a kind to show")->capture_default_str();
    command->add_flag("--json", values->json, "Print the result as JSON");
    return [values] { return run_audit(*values); };
}

Command add_eval_rejudge(CLI::App& group) {
    auto values = std::make_shared<RejudgeValues>();
    auto* command = group.add_subcommand("rejudge", "Parse stored answers again, without asking the model");
    command->footer(
        "Example:\n  cerebellum eval rejudge cerebellum-eval/arc-chat.*.jsonl --reason \"answers in \\\\boxed{} were "
        "missed\"\n\n"
        "Old score, new score, date and reason are kept in the file and in the summary, and belong in the model card.\n"
        "Programs are extracted again, and run again in the sandbox.");
    command->add_option("logs", values->logs, "Answers of 'cerebellum eval chat' or 'cerebellum eval code'")
        ->required()
        ->type_name("FILE.jsonl");
    command->add_option("--reason", values->reason, "Why they are judged again")->required();
    command
        ->add_option("--tasks", values->tasks, "File of the tasks of programs (default: the one of scripts/fetch-data)")
        ->type_name("FILE");
    command->add_option("--data", values->data, "Folder of scripts/fetch-data")->type_name("FOLDER");
    command->add_flag("--no-sandbox", values->no_sandbox, "Run generated programs with the rights of this user");
    command->add_flag("--json", values->json, "Print the result as JSON");
    return [values] { return run_rejudge(*values); };
}

}  // namespace cerebellum::cli
