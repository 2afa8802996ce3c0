#include "cerebellum/evaluate/chat_client.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <nlohmann/json.hpp>
#include <regex>
#include <thread>

#include "cerebellum/httplib.h"

namespace cerebellum {

namespace {

using nlohmann::json;

/// One line of a server's words about what went wrong.
std::string reason_of(const std::string& body) {
    const auto parsed = json::parse(body, nullptr, false);
    std::string reason = body;
    if (parsed.is_object() && parsed.contains("error"))
        reason = parsed["error"].is_object() ? parsed["error"].value("message", body) : parsed["error"].dump();
    std::ranges::replace(reason, '\n', ' ');
    constexpr std::size_t enough = 200;
    return reason.substr(0, enough);
}

bool worth_another_try(int status) {
    return status == 429 || status >= 500;
}

std::string text_of(const json& message, const char* key) {
    return message.contains(key) && message[key].is_string() ? message[key].get<std::string>() : std::string();
}

}  // namespace

ChatClient::ChatClient(ChatSettings settings) : settings_(std::move(settings)) {
    static const std::regex url(R"(^(https?://[^/\s]+)(/[^\s]*?)?/*$)");
    std::smatch match;
    if (!std::regex_match(settings_.server, match, url))
        throw UsageError(fmt::format("--server {} is no URL; write it as http://127.0.0.1:8080", settings_.server));
    host_ = match.str(1);
    prefix_ = match.str(2);
    if (prefix_.empty()) prefix_ = "/v1";
}

std::string ChatClient::exchange(const std::string& path, const std::string& body) const {
    std::string problem;
    for (int attempt = 0; attempt <= settings_.retries; ++attempt) {
        if (attempt > 0) std::this_thread::sleep_for(std::chrono::milliseconds(250 << std::min(attempt, 6)));
        httplib::Client client(host_);
        client.set_connection_timeout(10);
        client.set_read_timeout(settings_.timeout_s);
        client.set_write_timeout(settings_.timeout_s);
        if (!settings_.api_key.empty()) client.set_bearer_token_auth(settings_.api_key);
        const auto result =
            body.empty() ? client.Get(prefix_ + path) : client.Post(prefix_ + path, body, "application/json");
        if (!result) {
            problem = httplib::to_string(result.error());
            continue;
        }
        if (result->status == 200) return result->body;
        problem = fmt::format("status {}: {}", result->status, reason_of(result->body));
        if (!worth_another_try(result->status))
            throw Error(fmt::format("{}{}{} refuses the request: {}", host_, prefix_, path, problem));
    }
    throw ServerGone(
        fmt::format("{} does not answer ({}); what it answered before is kept, run the same command again "
                    "when it is back",
                    host_, problem));
}

std::string ChatClient::model_name() const {
    const auto models = json::parse(exchange("/models", ""), nullptr, false);
    if (!models.is_object() || !models.contains("data") || !models["data"].is_array() || models["data"].empty())
        return "model";
    return models["data"][0].value("id", "model");
}

ChatReply ChatClient::ask(const std::string& message) const {
    const json request = {{"messages", {{{"role", "user"}, {"content", message}}}},
                          {"temperature", settings_.temperature},
                          {"max_tokens", settings_.max_tokens},
                          {"seed", settings_.seed},
                          {"stream", false},
                          {"chat_template_kwargs", {{"enable_thinking", settings_.thinking}}}};
    const auto begun = std::chrono::steady_clock::now();
    const auto body = exchange("/chat/completions", request.dump(-1, ' ', false, json::error_handler_t::replace));
    const auto reply = json::parse(body, nullptr, false);
    if (!reply.is_object() || !reply.contains("choices") || !reply["choices"].is_array() || reply["choices"].empty() ||
        !reply["choices"][0].contains("message"))
        throw Error(fmt::format("{} gave no chat completion: {}", host_, reason_of(body)));
    const auto& choice = reply["choices"][0];
    ChatReply result;
    result.text = text_of(choice["message"], "content");
    result.reasoning = text_of(choice["message"], "reasoning_content");
    result.finish = text_of(choice, "finish_reason");
    if (reply.contains("usage") && reply["usage"].is_object()) {
        result.prompt_tokens = reply["usage"].value("prompt_tokens", 0);
        result.completion_tokens = reply["usage"].value("completion_tokens", 0);
    }
    result.milliseconds = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begun).count();
    return result;
}

void ChatClient::ask_all(const std::vector<std::string>& messages,
                         const std::function<void(std::size_t, const ChatReply&)>& done, Progress& progress) const {
    std::atomic<std::size_t> next{0};
    std::mutex mutex;
    std::exception_ptr problem;
    std::size_t finished = 0;
    progress.begin("asking", static_cast<double>(messages.size()));
    const auto work = [&] {
        try {
            for (std::size_t i; (i = next.fetch_add(1)) < messages.size();) {
                progress.check();
                const auto reply = ask(messages[i]);
                const std::lock_guard lock(mutex);
                done(i, reply);
                progress.advance(static_cast<double>(++finished), "questions");
            }
        } catch (...) {
            next = messages.size();
            const std::lock_guard lock(mutex);
            if (!problem) problem = std::current_exception();
        }
    };
    {
        std::vector<std::jthread> pool;
        for (int i = 0; i < settings_.concurrency; ++i) pool.emplace_back(work);
    }
    if (problem) std::rethrow_exception(problem);
    progress.end();
}

}  // namespace cerebellum
