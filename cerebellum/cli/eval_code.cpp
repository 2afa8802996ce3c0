#include <fmt/format.h>

#include "cerebellum/cli/eval_chat_options.h"
#include "cerebellum/cli/eval_commands.h"
#include "cerebellum/cli/eval_report.h"
#include "cerebellum/cli/terminal.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/hash.h"
#include "cerebellum/evaluate/code_tasks.h"
#include "cerebellum/version.h"

namespace cerebellum::cli {

namespace {

struct Values {
    EvalRunOptions run;
    EvalChatOptions chat;
    std::string benchmark;
    std::string tasks, data;
    std::string out = "cerebellum-eval";
    int count = 0;
    bool no_sandbox = false;
};

EvaluatedFile ask(const ChatTarget& target, const Values& values, const std::vector<CodeTask>& tasks,
                  nlohmann::json header, double temperature, std::optional<LlamaServer>& server, const Sandbox& sandbox,
                  Progress& progress) {
    header["model"] = target.model;
    header["temperature"] = temperature;
    auto name = values.benchmark;
    if (values.count > 0) name += fmt::format("-{}", tasks.size());
    if (values.chat.thinking) name += "-thinking";
    if (temperature > 0.0) name += fmt::format("-t{:g}", temperature);
    AuditLog log(log_path(values.out, name, target.model, values.tasks), header);
    std::vector<const CodeTask*> open;
    std::vector<std::string> prompts;
    for (const auto& task : tasks) {
        if (log.has(task.id)) continue;
        open.push_back(&task);
        prompts.push_back(code_prompt(task));
    }
    if (open.size() < tasks.size())
        progress.info(fmt::format("{} of {} tasks were asked before", tasks.size() - open.size(), tasks.size()));
    if (!open.empty()) {
        const ChatClient client(chat_settings(values.chat, values.run, target, server, temperature, progress));
        client.ask_all(
            prompts,
            [&](std::size_t i, const ChatReply& reply) {
                log.append(code_record(*open[i], prompts[i], reply, sandbox));
            },
            progress);
    }
    EvaluatedFile result{log.path(), read_audit_log(log.path())};
    write_file_atomically(samples_path(result.log), evalplus_samples(result.answers.records));
    return result;
}

int run_code(const Values& values) {
    TerminalProgress progress(values.run.quiet, values.run.verbose);
    const auto file = code_tasks_file(values.benchmark, values.tasks, values.data);
    auto tasks = load_code_tasks(file);
    if (values.count > 0 && values.count < static_cast<int>(tasks.size()))
        tasks.resize(static_cast<std::size_t>(values.count));
    const Sandbox sandbox(values.no_sandbox ? Sandbox::Isolation::limits_only : Sandbox::Isolation::full, {});
    if (values.no_sandbox) progress.warn("generated programs run without a sandbox, with the rights of this user");
    const nlohmann::json header = {{"benchmark", values.benchmark},
                                   {"mode", "code"},
                                   {"metric", "pass@1"},
                                   {"questions", tasks.size()},
                                   {"questions_sha256", sha256(read_file(file))},
                                   {"selection", values.count > 0 ? "the first of the file" : "all"},
                                   {"max_tokens", values.chat.max_tokens},
                                   {"thinking", values.chat.thinking},
                                   {"seed", values.chat.seed},
                                   {"sandbox", sandbox.description()},
                                   {"cerebellum", CEREBELLUM_VERSION},
                                   {"llama_cpp", CEREBELLUM_LLAMA_VERSION}};
    std::vector<EvaluatedFile> evaluated;
    for (const auto& target : chat_targets(values.chat, progress)) {
        std::optional<LlamaServer> server;
        for (const double temperature : temperatures(values.chat))
            evaluated.push_back(ask(target, values, tasks, header, temperature, server, sandbox, progress));
    }
    return report_evaluations(evaluated, values.run.json, progress);
}

}  // namespace

Command add_eval_code(CLI::App& group) {
    auto values = std::make_shared<Values>();
    values->chat.max_tokens = 1024;
    auto* command = group.add_subcommand("code", "HumanEval and HumanEval+: programs that pass their tests");
    command->footer(
        "Examples:\n  cerebellum eval code humaneval model-ours.gguf\n"
        "  cerebellum eval code humaneval-plus --server http://127.0.0.1:8080\n\n"
        "pass@1 of one answer per task. Programs that a model wrote run in bubblewrap: no network, a read-only system, "
        "an\n"
        "empty /tmp, limits on time, memory, processes and output. Without bubblewrap nothing is run (--no-sandbox\n"
        "forces it). Beside the answers lies a .samples.jsonl that EvalPlus can judge again.");
    command->add_option("benchmark", values->benchmark, "humaneval or humaneval-plus")
        ->required()
        ->type_name("BENCHMARK");
    add_eval_chat_options(*command, values->chat);
    command->add_option("--tasks", values->tasks, "File of the tasks (default: the one of scripts/fetch-data)")
        ->type_name("FILE");
    command->add_option("--count", values->count, "Only the first so many")->check(CLI::PositiveNumber);
    command->add_option("--data", values->data, "Folder of scripts/fetch-data")->type_name("FOLDER");
    command->add_option("--out", values->out, "Folder of the answers and summaries")
        ->type_name("FOLDER")
        ->capture_default_str();
    command->add_flag("--no-sandbox", values->no_sandbox, "Run generated programs with the rights of this user");
    add_eval_run(*command, values->run);
    return [values] { return run_code(*values); };
}

}  // namespace cerebellum::cli
