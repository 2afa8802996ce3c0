#include <fmt/format.h>

#include <algorithm>

#include "cerebellum/cli/eval_commands.h"
#include "cerebellum/cli/terminal.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/size.h"
#include "cerebellum/evaluate/llama_server.h"
#include "cerebellum/evaluate/serving.h"
#include "cerebellum/evaluate/speed.h"
#include "cerebellum/report/table.h"
#include "cerebellum/version.h"

namespace cerebellum::cli {

namespace {

struct Values {
    EvalRunOptions run;
    LlamaServerSettings server;
    std::string file, program;
    std::vector<int> contexts = {4096};
    int requests = 0;
    int prompt_words = 100;
    int max_tokens = 64;
    bool no_repack = false;
};

/// What happened at one context size; "worked" is false with a "reason" where the server did not get through.
nlohmann::json measure(const Values& values, int context, Progress& progress) {
    auto settings = values.server;
    settings.executable = values.program;
    settings.cache_type = values.server.cache_type;
    settings.context_per_slot = context;
    settings.threads = values.run.n_threads();
    settings.place = values.run.place();
    settings.place.repack = !values.no_repack;
    nlohmann::json result = {{"context_per_slot", context}, {"worked", false}};
    try {
        LlamaServer server(values.file, settings, progress);
        const int count = values.requests > 0 ? values.requests : 2 * settings.slots;
        const auto figures =
            measure_serving(server.url(), settings.slots, count, values.prompt_words, values.max_tokens, progress);
        std::vector<double> per_slot, first;
        for (const auto& request : figures.requests) {
            per_slot.push_back(request.tokens_per_second());
            first.push_back(request.first_token_s);
        }
        result["worked"] = true;
        result["requests"] = count;
        result["tokens_per_second_per_slot"] = spread_of(per_slot).median;
        result["tokens_per_second"] = figures.total_tokens_per_second();
        result["first_token_seconds"] = spread_of(first).median;
        result["peak_memory_bytes"] = server.peak_resident_bytes();
    } catch (const Interrupted&) {
        throw;
    } catch (const Error& problem) {
        result["reason"] = problem.what();
    }
    return result;
}

int run_serve(const Values& values) {
    TerminalProgress progress(values.run.quiet, values.run.verbose);
    auto json = describe_file(values.file, progress);
    add_origin(json, values.file, progress);
    json["slots"] = values.server.slots;
    json["kv"] = values.server.cache_type;
    json["prompt_words"] = values.prompt_words;
    json["max_tokens"] = values.max_tokens;
    json["threads"] = values.run.n_threads();
    json["cerebellum"] = CEREBELLUM_VERSION;
    json["llama_cpp"] = CEREBELLUM_LLAMA_VERSION;
    auto contexts = values.contexts;
    std::ranges::sort(contexts);
    std::vector<std::vector<std::string>> rows;
    int largest = 0;
    for (const int context : contexts) {
        const auto result = measure(values, context, progress);
        json["contexts"].push_back(result);
        if (!result["worked"].get<bool>()) {
            progress.warn(fmt::format("{} tokens per slot: {}", context, result["reason"].get<std::string>()));
            break;
        }
        largest = context;
        rows.push_back({std::to_string(context),
                        fmt::format("{:.2f}", result["tokens_per_second_per_slot"].get<double>()),
                        fmt::format("{:.2f}", result["tokens_per_second"].get<double>()),
                        fmt::format("{:.2f} s", result["first_token_seconds"].get<double>()),
                        format_bytes(result["peak_memory_bytes"].get<std::uint64_t>())});
    }
    json["largest_context_per_slot"] = largest;
    if (values.run.json)
        fmt::print("{}\n", json_to_text(json, 2));
    else
        fmt::print("{}",
                   format_table({"ctx per slot", "t/s per slot", "t/s in all", "first token", "peak memory"}, rows));
    return largest > 0 ? 0 : 1;
}

}  // namespace

Command add_eval_serve(CLI::App& group) {
    auto values = std::make_shared<Values>();
    values->server.cache_type = "q8_0";
    auto* command = group.add_subcommand("serve", "What several users at a time get from llama-server");
    command->footer(
        "Example:\n  cerebellum eval serve model-ours.gguf --ctx 4096,16384,32768\n\n"
        "Starts llama-server with --parallel slots and sends it as many streamed requests at a time, with different\n"
        "prompts: tokens per second of a slot and of all, the time to the first token, and the server's peak memory. "
        "Of\n"
        "several context sizes, the largest that worked is reported.");
    command->add_option("file", values->file, "A GGUF file")->required()->type_name("FILE.gguf");
    command->add_option("--parallel", values->server.slots, "Slots")->check(CLI::Range(1, 256))->capture_default_str();
    command->add_option("--kv", values->server.cache_type, "Type of the cache")->capture_default_str();
    command
        ->add_option("--ctx", values->contexts,
                     "Tokens of context per slot; several, comma-separated, are tried in turn")
        ->delimiter(',')
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    command->add_option("--requests", values->requests, "Requests in all (default: two per slot)")
        ->check(CLI::PositiveNumber);
    command->add_option("--prompt-words", values->prompt_words, "Words of a prompt")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    command->add_option("--max-tokens", values->max_tokens, "Tokens of an answer")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    command
        ->add_option("--llama-server", values->program,
                     "The llama-server to start (default: beside this program, or on the PATH)")
        ->type_name("PROGRAM");
    command->add_flag("--no-repack", values->no_repack,
                      "Leave weights as they are in the file (llama.cpp repacks them for the processor by default)");
    add_eval_run(*command, values->run);
    return [values] { return run_serve(*values); };
}

}  // namespace cerebellum::cli
