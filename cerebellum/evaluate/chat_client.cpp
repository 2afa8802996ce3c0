#include "cerebellum/evaluate/chat_client.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "cerebellum/core/json_text.h"
#include "cerebellum/core/visible_text.h"

namespace cerebellum {

namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

/// One line of a server's words about what went wrong.
std::string reason_of(const std::string& body) {
    std::string reason = body;
    if (const auto parsed = try_parse_json(body); parsed && parsed->is_object() && parsed->contains("error")) {
        const auto& error = (*parsed)["error"];
        reason = error.is_object() ? text_field(error, "message", body) : json_to_text(error);
    }
    constexpr std::size_t enough = 200;
    reason = cut_utf8(reason, enough);
    std::ranges::replace(reason, '\n', ' ');
    return visible(reason);
}

bool worth_another_try(int status) {
    return status == 429 || status >= 500;
}

/// A number of tokens, whatever the server says of it.
int count_of(const json& usage, const char* key) {
    return static_cast<int>(std::clamp(number_field(usage, key), 0.0, 1e9));
}

/// Sleeps, but not when the user asks to stop.
void pause(double seconds) {
    const auto end = Clock::now() + std::chrono::duration<double>(seconds);
    while (Clock::now() < end) {
        NoProgress().check();
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
}

/// Hands replies over as ask_all promises it.
class Delivery {
  public:
    Delivery(const std::function<void(std::size_t, const ChatReply&)>& done, std::size_t limit)
        : done_(done), limit_(limit) {}

    /// Returns how many are handed over by now.
    std::size_t add(std::size_t i, ChatReply reply) {
        if (reply.failure.empty()) {
            flush();
            hand_over(i, reply);
            return delivered_;
        }
        held_.emplace_back(i, std::move(reply));
        if (held_.size() >= limit_)
            throw ServerGone(fmt::format("{} bad answers in a row, the last one: {}; what was answered before is kept",
                                         held_.size(), held_.back().second.failure));
        return delivered_;
    }
    void flush() {
        for (const auto& [i, reply] : held_) hand_over(i, reply);
        held_.clear();
    }

  private:
    void hand_over(std::size_t i, const ChatReply& reply) {
        done_(i, reply);
        ++delivered_;
    }

    const std::function<void(std::size_t, const ChatReply&)>& done_;
    std::size_t limit_;
    std::size_t delivered_ = 0;
    std::vector<std::pair<std::size_t, ChatReply>> held_;
};

}  // namespace

ChatClient::ChatClient(ChatSettings settings)
    : settings_(std::move(settings)), url_(parse_url(settings_.server, "--server")) {
    if (url_.path.empty()) url_.path = "/v1";
}

std::string ChatClient::exchange(const std::string& path, const std::string& body) const {
    const auto deadline = Clock::now() + std::chrono::seconds(settings_.timeout_s);
    const auto left = [&] { return std::chrono::duration<double>(deadline - Clock::now()).count(); };
    std::string problem;
    for (int attempt = 0; attempt <= settings_.retries; ++attempt) {
        if (attempt > 0) pause(std::min(0.25 * (1 << std::min(attempt, 6)), std::max(0.0, left())));
        HttpLimits limits;
        limits.seconds = left();
        if (limits.seconds <= 0.0) break;
        const auto reply = http_exchange(url_, path, body, settings_.api_key, limits);
        problem = reply.problem;
        switch (reply.end) {
            case HttpReply::End::broken:
                continue;
            case HttpReply::End::out_of_time:
                throw BadReply(fmt::format("{}: no complete answer within {} s", url_.origin(), settings_.timeout_s));
            case HttpReply::End::not_accepted:
                throw BadReply(fmt::format("{}: {}", url_.origin(), problem));
            case HttpReply::End::answered:
                break;
        }
        if (reply.status == 200) return reply.body;
        problem = fmt::format("status {}: {}", reply.status, reason_of(reply.body));
        if (!worth_another_try(reply.status))
            throw Error(fmt::format("{}{}{} refuses the request: {}", url_.origin(), url_.path, path, problem));
    }
    throw ServerGone(
        fmt::format("{} does not answer ({}); what it answered before is kept, run the same command again "
                    "when it is back",
                    url_.origin(), problem));
}

std::string ChatClient::model_name() const {
    const auto models = try_parse_json(exchange("/models", ""));
    if (!models || !models->is_object() || !models->contains("data")) return "model";
    const auto& data = (*models)["data"];
    constexpr std::size_t longest = 200;  // it goes into tables, results and names
    return data.is_array() && !data.empty() ? std::string(cut_utf8(text_field(data[0], "id", "model"), longest))
                                            : "model";
}

ChatReply ChatClient::ask(const std::string& message) const {
    const json request = {{"messages", {{{"role", "user"}, {"content", message}}}},
                          {"temperature", settings_.temperature},
                          {"max_tokens", settings_.max_tokens},
                          {"seed", settings_.seed},
                          {"stream", false},
                          {"chat_template_kwargs", {{"enable_thinking", settings_.thinking}}}};
    const auto begun = Clock::now();
    const auto body = exchange("/chat/completions", json_to_text(request));
    const auto refuse = [&] {
        return BadReply(fmt::format("{} gave no chat completion: {}", url_.origin(), reason_of(body)));
    };
    const auto reply = try_parse_json(body);
    if (!reply || !reply->is_object() || !reply->contains("choices")) throw refuse();
    const auto& choices = (*reply)["choices"];
    if (!choices.is_array() || choices.empty() || !choices[0].is_object() || !choices[0].contains("message"))
        throw refuse();
    const auto& answer = choices[0]["message"];
    // No content is an empty answer (a model that only thought, or called a tool); any other kind is no answer.
    if (!answer.is_object()) throw refuse();
    if (answer.contains("content") && !answer["content"].is_string() && !answer["content"].is_null()) throw refuse();
    ChatReply result;
    result.text = text_field(answer, "content");
    result.reasoning = text_field(answer, "reasoning_content");
    result.finish = text_field(choices[0], "finish_reason");
    if (reply->contains("usage")) {
        result.prompt_tokens = count_of((*reply)["usage"], "prompt_tokens");
        result.completion_tokens = count_of((*reply)["usage"], "completion_tokens");
    }
    result.milliseconds = std::chrono::duration<double, std::milli>(Clock::now() - begun).count();
    return result;
}

ChatReply ChatClient::ask_or_fail(const std::string& message) const {
    const auto begun = Clock::now();
    try {
        return ask(message);
    } catch (const BadReply& problem) {
        ChatReply reply;
        reply.finish = "failed";
        reply.failure = problem.what();
        reply.milliseconds = std::chrono::duration<double, std::milli>(Clock::now() - begun).count();
        return reply;
    }
}

void ChatClient::ask_all(const std::vector<std::string>& messages,
                         const std::function<void(std::size_t, const ChatReply&)>& done, Progress& progress) const {
    std::atomic<std::size_t> next{0};
    std::mutex mutex;
    std::exception_ptr problem;
    constexpr std::size_t too_many_in_a_row = 16;
    Delivery delivery(done, too_many_in_a_row);
    progress.begin("asking", static_cast<double>(messages.size()));
    const auto work = [&] {
        try {
            for (std::size_t i; (i = next.fetch_add(1)) < messages.size();) {
                progress.check();
                auto reply = ask_or_fail(messages[i]);
                const std::lock_guard lock(mutex);
                progress.advance(static_cast<double>(delivery.add(i, std::move(reply))), "questions");
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
    delivery.flush();
    progress.end();
}

}  // namespace cerebellum
