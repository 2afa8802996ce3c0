#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cerebellum/cli/eval_commands.h"
#include "cerebellum/core/progress.h"
#include "cerebellum/evaluate/chat_client.h"
#include "cerebellum/evaluate/llama_server.h"

namespace cerebellum::cli {

/// Options of the evaluations that talk to a server.
struct EvalChatOptions {
    std::vector<std::string> files;
    std::string server, name, llama_server;
    int slots = 4;
    int context = 4096;
    std::string cache = "f16";
    std::string temperatures = "0";
    int max_tokens = 512;
    bool thinking = false;
    int timeout_s = 600;
    int retries = 4;
    std::uint64_t seed = 1;
};
void add_eval_chat_options(CLI::App& command, EvalChatOptions& options);
/// Throws UsageError where one is none.
std::vector<double> temperatures(const EvalChatOptions& options);

/// A file to serve (empty: what is behind --server) and what the log calls it.
struct ChatTarget {
    std::filesystem::path file;
    nlohmann::json model;
};
/// Throws UsageError unless either files or a server are given.
std::vector<ChatTarget> chat_targets(const EvalChatOptions& options, Progress& progress);

/// How to reach the target; starts `server` for it where it is not running yet.
ChatSettings chat_settings(const EvalChatOptions& options, const EvalRunOptions& run, const ChatTarget& target,
                           std::optional<LlamaServer>& server, double temperature, Progress& progress);

}  // namespace cerebellum::cli
