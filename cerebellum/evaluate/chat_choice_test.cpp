#include "cerebellum/evaluate/chat_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "cerebellum/evaluate/raw_server_support_test.h"
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

/// Answers each message with the body that the message is.
testing::RawServer::Serve echo() {
    return [](const testing::RawServer::Peer& peer, const std::string& request) {
        const auto asked = json::parse(request.substr(request.find("\r\n\r\n") + 4));
        peer.say(testing::http_answer(asked["messages"][0]["content"].get<std::string>()));
    };
}

std::string completion(const std::string& message) {
    return R"({"choices": [{"message": )" + message + "}]}";
}

TEST(ChatClient, takes_replies_of_other_kinds_for_failed_ones) {
    const testing::RawServer server(echo());
    ChatSettings settings;
    settings.server = server.url();
    const ChatClient client(settings);
    std::string deep;
    for (int i = 0; i < 200'000; ++i) deep += "[";
    for (const std::string& body : {std::string(),
                                    std::string("null"),
                                    std::string("[]"),
                                    std::string("7"),
                                    std::string("{}"),
                                    std::string("no JSON"),
                                    std::string(R"({"choices": 3})"),
                                    std::string(R"({"choices": []})"),
                                    std::string(R"({"choices": [null]})"),
                                    std::string(R"({"choices": {"0": {}}})"),
                                    std::string(R"({"choices": [[{"message": 1}]]})"),
                                    completion("null"),
                                    completion("\"B\""),
                                    completion(R"({"content": 7})"),
                                    completion(R"({"content": ["B"]})"),
                                    completion(R"({"content": {"text": "B"}})"),
                                    std::string("\"\xff\""),
                                    std::string(R"({"choices": "\ud800"})"),
                                    std::string(R"({"error": {"message": 7}})"),
                                    std::string(R"({"error": [[]]})"),
                                    deep,
                                    completion(deep)}) {
        if (body.empty()) continue;
        EXPECT_THROW(client.ask(body), BadReply) << body.substr(0, 80);
    }
    EXPECT_EQ(client.ask(completion(R"({"content": "B"})")).text, "B");
    // What is beside the answer does not matter.
    const auto reply =
        client.ask(R"({"choices": [{"message": {"content": "B", "reasoning_content": 5}, "finish_reason": []}],)"
                   R"( "usage": {"prompt_tokens": "many", "completion_tokens": 1e300}})");
    EXPECT_EQ(reply.text, "B");
    EXPECT_EQ(reply.prompt_tokens, 0);
    EXPECT_EQ(client.ask(completion(R"({"content": null})")).text, "");
    EXPECT_EQ(client.ask(R"({"choices": [{"message": {"content": "C"}}], "usage": [1]})").text, "C");
}

TEST(ChatClient, goes_on_behind_a_failed_reply) {
    const testing::RawServer server(echo());
    ChatSettings settings;
    settings.server = server.url();
    std::vector<std::string> messages(40, completion(R"({"content": "B"})"));
    for (const std::size_t i : {0, 7, 8, 39}) messages[i] = completion("5");
    std::vector<ChatReply> replies(messages.size());
    NoProgress progress;
    std::size_t handed_over = 0;
    ChatClient(settings).ask_all(
        messages,
        [&](std::size_t i, const ChatReply& reply) {
            replies[i] = reply;
            ++handed_over;
        },
        progress);
    EXPECT_EQ(handed_over, messages.size());
    for (std::size_t i = 0; i < replies.size(); ++i)
        EXPECT_EQ(replies[i].failure.empty(), messages[i] == messages[1]) << i;
    const auto record = chat_record(question, "p", replies[7]);
    EXPECT_THAT(record["failed"].get<std::string>(), HasSubstr("no chat completion"));
    EXPECT_EQ(record["correct"], false);
    EXPECT_EQ(record["finish"], "failed");
}

TEST(ChatClient, gives_a_server_up_that_is_none) {
    const testing::RawServer server(testing::http_answer("hello"));
    ChatSettings settings;
    settings.server = server.url();
    NoProgress progress;
    int handed_over = 0;
    EXPECT_THAT(testing::error_of([&] {
                    ChatClient(settings).ask_all(
                        std::vector<std::string>(200, "x"), [&](std::size_t, const ChatReply&) { ++handed_over; },
                        progress);
                }),
                HasSubstr("bad answers in a row"));
    EXPECT_EQ(handed_over, 0);
    EXPECT_LT(server.connections(), 40);
}

TEST(ChatClient, has_one_deadline_for_an_answer_with_all_its_tries) {
    std::atomic<int> calls{0};
    const testing::RawServer server([&](const testing::RawServer::Peer& peer, const std::string&) {
        if (++calls == 1) return;  // broken at once, which is worth another try
        peer.say("HTTP/1.1 200 OK\r\n\r\n");
        peer.say_without_end(" ", std::chrono::milliseconds(20));
    });
    ChatSettings settings;
    settings.server = server.url();
    settings.timeout_s = 2;
    const auto begun = std::chrono::steady_clock::now();
    EXPECT_THROW(ChatClient(settings).ask("x"), BadReply);
    EXPECT_LT(std::chrono::steady_clock::now() - begun, std::chrono::milliseconds(3500));
    EXPECT_EQ(calls, 2);
}

TEST(ChatClient, stops_within_a_second_when_the_user_asks_to) {
    const testing::RawServer silent(
        [](const testing::RawServer::Peer& peer, const std::string&) { peer.stay_silent(); });
    const testing::RawServer broken("");  // between tries
    for (const auto& url : {silent.url(), broken.url()}) {
        ChatSettings settings;
        settings.server = url;
        settings.retries = 100;
        std::jthread user([] {
            std::this_thread::sleep_for(std::chrono::milliseconds(300));
            Progress::stop_requested = true;
        });
        NoProgress progress;
        const auto begun = std::chrono::steady_clock::now();
        EXPECT_THROW(ChatClient(settings).ask_all(
                         {"a", "b", "c"}, [](std::size_t, const ChatReply&) {}, progress),
                     Interrupted);
        EXPECT_LT(std::chrono::steady_clock::now() - begun, std::chrono::milliseconds(1300));
        user.join();
        Progress::stop_requested = false;
    }
}

TEST(ChatClient, takes_any_list_of_models) {
    for (const auto* body : {"", "no JSON", "[]", R"({"data": 3})", R"({"data": []})", R"({"data": [7]})",
                             R"({"data": [{"id": 5}]})", R"({"data": {"id": "x"}})"}) {
        const testing::RawServer server(testing::http_answer(body));
        ChatSettings settings;
        settings.server = server.url();
        EXPECT_EQ(ChatClient(settings).model_name(), "model") << body;
    }
}

TEST(ChatClient, shows_a_server_s_words_in_one_harmless_line) {
    const std::string words =
        R"({"error": {"message": "\u001b]0;owned\u0007\u202e\nand )" + std::string(5000, 'x') + "\"}}";
    const testing::RawServer server("HTTP/1.1 400 Bad\r\nContent-Length: " + std::to_string(words.size()) + "\r\n\r\n" +
                                    words);
    ChatSettings settings;
    settings.server = server.url();
    const auto problem = testing::error_of([&] { ChatClient(settings).ask("x"); });
    EXPECT_THAT(problem, HasSubstr("\\u001b]0;owned\\u0007\\u202e and xxx"));
    EXPECT_LT(problem.size(), 400U);
}

TEST(ChatClient, refuses_what_is_no_url) {
    ChatSettings settings;
    settings.server = "localhost";
    EXPECT_THROW(ChatClient{settings}, UsageError);
}

}  // namespace
}  // namespace cerebellum
