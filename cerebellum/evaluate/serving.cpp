#include "cerebellum/evaluate/serving.h"

#include <fmt/format.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "cerebellum/core/error.h"
#include "cerebellum/httplib.h"

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
    httplib::Client client(url);
    client.set_read_timeout(3600);
    ServedRequest served;
    std::string rest;
    const auto begun = Clock::now();
    httplib::Request http;
    http.method = "POST";
    http.path = "/completion";
    http.body = request.dump();
    http.set_header("Content-Type", "application/json");
    http.content_receiver = [&](const char* data, std::size_t size, std::uint64_t, std::uint64_t) {
        rest.append(data, size);
        for (std::size_t end; (end = rest.find("\n\n")) != std::string::npos; rest.erase(0, end + 2)) {
            const auto event = rest.substr(0, end);
            const auto at = event.find("data: ");
            if (at == std::string::npos) continue;
            const auto json = nlohmann::json::parse(event.substr(at + 6), nullptr, false);
            if (!json.is_object()) continue;
            if (served.first_token_s == 0.0) served.first_token_s = seconds_since(begun);
            if (json.value("stop", false)) served.tokens = json.value("tokens_predicted", served.tokens);
        }
        return true;
    };
    const auto result = client.send(http);
    served.seconds = seconds_since(begun);
    if (!result || result->status != 200)
        throw Error(
            fmt::format("{} did not answer under load: {}", url,
                        result ? fmt::format("status {}", result->status) : httplib::to_string(result.error())));
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
