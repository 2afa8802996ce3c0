#include "cerebellum/evaluate/serving.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "cerebellum/core/error.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/evaluate/http_client.h"

namespace cerebellum {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begun) {
    return std::chrono::duration<double>(Clock::now() - begun).count();
}

/// Different every time, so that no server has it in its cache.
std::string make_prompt(std::mt19937& random, int n_words) {
    static const char* words[] = {"river", "seven", "tall", "walks", "under",
                                  "green", "storm", "book", "quiet", "between"};
    std::string prompt;
    for (int i = 0; i < n_words; ++i)
        prompt += fmt::format("{}{} ", words[random() % std::size(words)], random() % 100);
    return prompt;
}

/// llama-server's own completion: it answers with exactly as many tokens as it is asked for.
ServedRequest serve(const std::string& url, const std::string& prompt, int max_tokens) {
    const nlohmann::json request = {{"prompt", prompt}, {"n_predict", max_tokens}, {"temperature", 0.0},
                                    {"stream", true},   {"ignore_eos", true},      {"cache_prompt", false}};
    ServedRequest served;
    std::string rest;
    const auto begun = Clock::now();
    const auto receive = [&](std::string_view piece) {
        rest += piece;
        for (std::size_t end; (end = rest.find("\n\n")) != std::string::npos; rest.erase(0, end + 2)) {
            const auto event = rest.substr(0, end);
            const auto at = event.find("data: ");
            if (at == std::string::npos) continue;
            const auto json = try_parse_json(std::string_view(event).substr(at + 6));
            if (!json || !json->is_object()) continue;
            if (served.first_token_s == 0.0) served.first_token_s = seconds_since(begun);
            if (bool_field(*json, "stop"))
                served.tokens = static_cast<int>(std::clamp(number_field(*json, "tokens_predicted"), 0.0, 1e9));
        }
        constexpr std::size_t longest_event = 1U << 20U;
        return rest.size() < longest_event;
    };
    HttpLimits limits;
    limits.seconds = 3600.0;
    limits.body_bytes = std::size_t{1} << 30U;
    const auto reply =
        http_exchange(parse_url(url, "the server"), "/completion", json_to_text(request), "", limits, receive);
    served.seconds = seconds_since(begun);
    if (reply.end != HttpReply::End::answered || reply.status != 200)
        throw Error(fmt::format("{} did not answer under load: {}", url,
                                reply.problem.empty() ? fmt::format("status {}", reply.status) : reply.problem));
    if (served.tokens <= 0) throw Error(fmt::format("{} streamed no tokens; is it a llama-server?", url));
    return served;
}

}  // namespace

double ServedRequest::tokens_per_second() const {
    return tokens > 1 ? (tokens - 1) / (seconds - first_token_s) : 0.0;
}

double ServingFigures::total_tokens_per_second() const {
    double tokens = 0.0;
    for (const auto& request : requests) tokens += request.tokens;
    return seconds > 0.0 ? tokens / seconds : 0.0;
}

ServingFigures measure_serving(const std::string& url, int slots, int count, int prompt_words, int max_tokens,
                               Progress& progress) {
    std::mt19937 random(std::random_device{}());
    std::vector<std::string> prompts;
    for (int i = 0; i < count; ++i) prompts.push_back(make_prompt(random, prompt_words));
    ServingFigures figures;
    std::atomic<std::size_t> next{0};
    std::mutex mutex;
    std::exception_ptr problem;
    progress.begin("serving", count);
    const auto begun = Clock::now();
    {
        std::vector<std::jthread> users;
        for (int user = 0; user < slots; ++user)
            users.emplace_back([&] {
                try {
                    for (std::size_t i; (i = next.fetch_add(1)) < prompts.size();) {
                        progress.check();
                        const auto served = serve(url, prompts[i], max_tokens);
                        const std::lock_guard lock(mutex);
                        figures.requests.push_back(served);
                        progress.advance(static_cast<double>(figures.requests.size()), "requests");
                    }
                } catch (...) {
                    next = prompts.size();
                    const std::lock_guard lock(mutex);
                    if (!problem) problem = std::current_exception();
                }
            });
    }
    if (problem) std::rethrow_exception(problem);
    figures.seconds = seconds_since(begun);
    progress.end();
    return figures;
}

}  // namespace cerebellum
