#include "cerebellum/evaluate/chat_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "cerebellum/evaluate/rejudge.h"
#include "cerebellum/gguf/gguf_support_test.h"
#include "cerebellum/httplib.h"

namespace cerebellum {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const Question question = {"7", "geography", "Which is the capital of France?", {"Rome", "Paris", "Bern", "Oslo"}, {1}};

/// A server that answers as it is told, in this process.
class FakeServer {
  public:
    using Answer = std::function<void(const json& request, httplib::Response&)>;
    explicit FakeServer(const Answer& answer) {
        server_.Post("/v1/chat/completions", [answer](const httplib::Request& request, httplib::Response& response) {
            answer(json::parse(request.body), response);
        });
        port_ = server_.bind_to_any_port("127.0.0.1");
        thread_ = std::jthread([this] { server_.listen_after_bind(); });
        while (!server_.is_running()) std::this_thread::yield();
    }
    ~FakeServer() { server_.stop(); }
    std::string url() const { return "http://127.0.0.1:" + std::to_string(port_); }
    void stop() { server_.stop(); }

  private:
    httplib::Server server_;
    int port_ = 0;
    std::jthread thread_;
};

void reply_with(httplib::Response& response, const std::string& text) {
    const json body = {{"choices", {{{"message", {{"content", text}}}, {"finish_reason", "stop"}}}},
                       {"usage", {{"prompt_tokens", 11}, {"completion_tokens", 3}}}};
    response.set_content(body.dump(), "application/json");
}

ChatSettings settings_for(const FakeServer& server) {
    ChatSettings settings;
    settings.server = server.url();
    settings.retries = 2;
    return settings;
}

TEST(ChatPrompt, offers_letters) {
    EXPECT_EQ(chat_prompt(Benchmark::mmlu, question),
              "Which is the capital of France?\n\nA. Rome\nB. Paris\nC. Bern\nD. Oslo\n\n"
              "Which of the choices is correct? Answer with its letter only.");
}

TEST(ChatRecord, keeps_the_raw_answer_and_can_be_judged_again) {
    ChatReply reply;
    reply.text = "It is **Paris**, so B.";
    AuditFile log{{}, {chat_record(question, "p", reply)}};
    EXPECT_EQ(log.records[0]["parsed"], "B");
    EXPECT_EQ(log.records[0]["correct"], true);
    log.records[0]["parsed"] = "";  // as an older parser left it
    log.records[0]["correct"] = false;
    log.records[0]["metrics"]["acc"] = 0.0;
    const auto result = rejudge(log, judge_choice);
    EXPECT_THAT(result.changed, ElementsAre("7"));
    EXPECT_EQ(result.old_score, 0.0);
    EXPECT_EQ(result.new_score, 1.0);
    EXPECT_TRUE(rejudge(log, judge_choice).changed.empty());
}

TEST(ChatClient, asks_at_temperature_0_and_reads_the_answer) {
    json seen;
    FakeServer server([&](const json& request, httplib::Response& response) {
        seen = request;
        reply_with(response, "B");
    });
    const auto reply = ChatClient(settings_for(server)).ask("Hello?");
    EXPECT_EQ(reply.text, "B");
    EXPECT_EQ(reply.completion_tokens, 3);
    EXPECT_EQ(seen["temperature"], 0.0);
    EXPECT_EQ(seen["messages"][0]["content"], "Hello?");
    EXPECT_EQ(seen["chat_template_kwargs"]["enable_thinking"], false);
}

TEST(ChatClient, tries_again_while_the_server_is_in_trouble) {
    std::atomic<int> calls{0};
    FakeServer server([&](const json&, httplib::Response& response) {
        if (++calls < 3)
            response.status = 503;
        else
            reply_with(response, "C");
    });
    EXPECT_EQ(ChatClient(settings_for(server)).ask("Hello?").text, "C");
    EXPECT_EQ(calls, 3);
}

TEST(ChatClient, says_what_the_server_refuses) {
    std::atomic<int> calls{0};
    FakeServer server([&](const json&, httplib::Response& response) {
        ++calls;
        response.status = 400;
        response.set_content(R"({"error": {"message": "too long\nfor me"}})", "application/json");
    });
    EXPECT_THAT(testing::error_of([&] { ChatClient(settings_for(server)).ask("Hello?"); }),
                HasSubstr("too long for me"));
    EXPECT_EQ(calls, 1);
}

TEST(ChatClient, keeps_what_was_answered_before_a_server_died) {
    std::atomic<int> calls{0};
    auto server = std::make_unique<FakeServer>([&](const json& request, httplib::Response& response) {
        if (++calls > 20)
            response.status = 500;
        else
            reply_with(response, request["messages"][0]["content"].get<std::string>());
    });
    std::vector<std::string> messages, answers(60);
    for (int i = 0; i < 60; ++i) messages.push_back(std::to_string(i));
    NoProgress progress;
    int answered = 0;
    EXPECT_THROW(ChatClient(settings_for(*server))
                     .ask_all(
                         messages,
                         [&](std::size_t i, const ChatReply& reply) {
                             answers[i] = reply.text;
                             ++answered;
                         },
                         progress),
                 ServerGone);
    EXPECT_EQ(answered, 20);
    for (std::size_t i = 0; i < answers.size(); ++i) EXPECT_TRUE(answers[i].empty() || answers[i] == messages[i]);
}

TEST(ChatClient, refuses_what_is_no_url) {
    ChatSettings settings;
    settings.server = "localhost";
    EXPECT_THROW(ChatClient{settings}, UsageError);
}

}  // namespace
}  // namespace cerebellum
