#include <fmt/format.h>

#include <cstdlib>
#include <optional>

#include "cerebellum/cli/eval_chat_options.h"
#include "cerebellum/cli/eval_commands.h"
#include "cerebellum/cli/eval_report.h"
#include "cerebellum/cli/terminal.h"
#include "cerebellum/core/error.h"
#include "cerebellum/evaluate/chat_choice.h"
#include "cerebellum/version.h"

namespace cerebellum::cli {

namespace {

struct Values {
    EvalRunOptions run;
    EvalChatOptions chat;
    std::string benchmark;
    EvalQuestionOptions questions;
    std::string out = "cerebellum-eval";
};

/// Asks what the log does not have yet.
EvaluatedFile ask(const ChatTarget& target, const Values& values, Benchmark benchmark, const EvalQuestions& questions,
                  double temperature, std::optional<LlamaServer>& server, Progress& progress) {
    auto header = questions.header;
    header.update({{"mode", "chat"},
                   {"metric", "acc"},
                   {"model", target.model},
                   {"temperature", temperature},
                   {"max_tokens", values.chat.max_tokens},
                   {"thinking", values.chat.thinking},
                   {"seed", values.chat.seed},
                   {"cerebellum", CEREBELLUM_VERSION},
                   {"llama_cpp", CEREBELLUM_LLAMA_VERSION}});
    auto name = fmt::format("{}-chat{}", benchmark_name(benchmark), questions.name_suffix);
    if (values.chat.thinking) name += "-thinking";
    if (temperature > 0.0) name += fmt::format("-t{:g}", temperature);
    AuditLog log(log_path(values.out, name, target.model, questions.file), header);
    const auto& selected = questions.selection.questions;
    std::vector<const Question*> open;
    std::vector<std::string> prompts;
    for (const auto& question : selected) {
        if (log.has(question.id)) continue;
        open.push_back(&question);
        prompts.push_back(chat_prompt(benchmark, question));
    }
    if (open.size() < selected.size())
        progress.info(
            fmt::format("{} of {} questions were asked before", selected.size() - open.size(), selected.size()));
    if (!open.empty()) {
        const ChatClient client(chat_settings(values.chat, values.run, target, server, temperature, progress));
        client.ask_all(
            prompts,
            [&](std::size_t i, const ChatReply& reply) { log.append(chat_record(*open[i], prompts[i], reply)); },
            progress);
    }
    return {log.path(), read_audit_log(log.path())};
}

int run_chat(const Values& values) {
    TerminalProgress progress(values.run.quiet, values.run.verbose);
    const auto benchmark = parse_benchmark(values.benchmark);
    const auto questions = load_eval_questions(benchmark, values.questions);
    std::vector<EvaluatedFile> evaluated;
    for (const auto& target : chat_targets(values.chat, progress)) {
        std::optional<LlamaServer> server;
        for (const double temperature : temperatures(values.chat))
            evaluated.push_back(ask(target, values, benchmark, questions, temperature, server, progress));
    }
    return report_evaluations(evaluated, values.run.json, progress);
}

}  // namespace

void add_eval_chat_options(CLI::App& command, EvalChatOptions& options) {
    command.add_option("files", options.files, "GGUF files, each served by a llama-server of our own")
        ->type_name("FILE.gguf");
    command.add_option("--server", options.server, "A running server that speaks OpenAI's protocol, instead of files")
        ->type_name("URL");
    command.add_option("--name", options.name, "What to call the model behind --server (default: what it says)");
    command
        .add_option("--llama-server", options.llama_server,
                    "The llama-server to start (default: beside this program, or on the PATH)")
        ->type_name("PROGRAM");
    command.add_option("--parallel,--slots", options.slots, "Requests at a time")
        ->check(CLI::Range(1, 256))
        ->capture_default_str();
    command.add_option("--ctx", options.context, "Tokens of context of each of our own server's slots")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    command.add_option("--kv", options.cache, "Type of our own server's cache")->capture_default_str();
    command
        .add_option("--temperature", options.temperatures,
                    "One or several, comma-separated; the first is compared with the others")
        ->capture_default_str();
    command.add_option("--max-tokens", options.max_tokens, "Longest answer")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    command.add_flag("--thinking", options.thinking, "Let the model think aloud first");
    command.add_option("--timeout", options.timeout_s, "Seconds for one answer")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    command.add_option("--retries", options.retries, "Further tries where the server is in trouble")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    command.add_option("--seed", options.seed, "Seed of the sampling above temperature 0")->capture_default_str();
}

std::vector<double> temperatures(const EvalChatOptions& options) {
    std::vector<double> result;
    for (const auto& text : CLI::detail::split(options.temperatures, ',')) {
        char* end = nullptr;
        const double value = std::strtod(text.c_str(), &end);
        if (text.empty() || *end != '\0' || value < 0.0 || value > 5.0)
            throw UsageError(fmt::format("--temperature '{}' is not between 0 and 5", text));
        result.push_back(value);
    }
    return result;
}

/// For --server and nobody else.
std::string key_for_servers() {
    const char* key = std::getenv("OPENAI_API_KEY");
    return key != nullptr ? key : "";
}

std::vector<ChatTarget> chat_targets(const EvalChatOptions& options, Progress& progress) {
    if (options.files.empty() == options.server.empty())
        throw UsageError("give either GGUF files to serve, or the --server URL of a running server");
    std::vector<ChatTarget> targets;
    for (const auto& file : options.files) targets.push_back({file, describe_file(file, progress)});
    if (!options.server.empty()) {
        ChatSettings settings;
        settings.server = options.server;
        settings.retries = options.retries;
        settings.timeout_s = options.timeout_s;
        settings.api_key = key_for_servers();
        const auto name = options.name.empty() ? ChatClient(settings).model_name() : options.name;
        targets.push_back({{}, {{"file", name}, {"server", options.server}, {"sha256", "unknown"}}});
    }
    return targets;
}

ChatSettings chat_settings(const EvalChatOptions& options, const EvalRunOptions& run, const ChatTarget& target,
                           std::optional<LlamaServer>& server, double temperature, Progress& progress) {
    ChatSettings settings;
    settings.server = options.server;
    if (!options.server.empty()) settings.api_key = key_for_servers();
    settings.temperature = temperature;
    settings.max_tokens = options.max_tokens;
    settings.seed = options.seed;
    settings.thinking = options.thinking;
    settings.timeout_s = options.timeout_s;
    settings.retries = options.retries;
    settings.concurrency = options.slots;
    if (!options.server.empty()) return settings;
    if (!server || !server->running()) {
        LlamaServerSettings own;
        own.executable = options.llama_server;
        own.slots = options.slots;
        own.context_per_slot = options.context;
        own.cache_type = options.cache;
        own.threads = run.n_threads();
        own.place = run.place();
        own.thinking = options.thinking;
        server.emplace(target.file, own, progress);
    }
    settings.server = server->url();
    return settings;
}

Command add_eval_chat(CLI::App& group) {
    auto values = std::make_shared<Values>();
    auto* command = group.add_subcommand("chat", "Multiple choice in a chat: the model is asked for a letter");
    command->footer(
        "Examples:\n  cerebellum eval chat arc model-ours.gguf model-Q4_K_M.gguf --count 500\n"
        "  cerebellum eval chat mmlu-redux --server http://127.0.0.1:8080 --temperature 0,0.3,0.7\n\n"
        "Every reply is kept as it came, with what was read out of it. Where more than 0.5 % could not be read, no "
        "score\n"
        "is published: 'cerebellum eval audit' shows the replies, 'cerebellum eval rejudge' applies a mended parser\n"
        "without asking again. A run that was stopped, or whose server died, goes on where it stopped.\n"
        "A key for --server is taken from OPENAI_API_KEY.");
    command->add_option("benchmark", values->benchmark, "Which questions these are")
        ->required()
        ->type_name("BENCHMARK");
    add_eval_chat_options(*command, values->chat);
    add_eval_questions(*command, values->questions);
    command->add_option("--out", values->out, "Folder of the answers and summaries")
        ->type_name("FOLDER")
        ->capture_default_str();
    add_eval_run(*command, values->run);
    return [values] { return run_chat(*values); };
}

}  // namespace cerebellum::cli
