// Servers that say what no server should, behind the whole program: every answer of theirs is a failed item or an
// error, in time, and nothing of it drives the terminal.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cerebellum/evaluate/raw_server_support_test.h"
#include "tests/hostile/small_jobs.h"

namespace cerebellum {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using std::chrono::milliseconds;
using testing::http_answer;
using testing::Program;
using testing::RawServer;
using testing::Workshop;
using Peer = RawServer::Peer;
using Clock = std::chrono::steady_clock;

constexpr int timeout_s = 2;           // --timeout
constexpr double most_seconds = 20.0;  // of a run of two questions, with a busy machine's patience
const std::string escapes = "\x1b]0;owned\x07\x1b[2J\xC2\x9B\xE2\x80\xAE";

struct Behaviour {
    std::string what;
    RawServer::Serve serve;
};

RawServer::Serve says(const std::string& text) {
    return [text](const Peer& peer, const std::string&) { peer.say(text); };
}

RawServer::Serve drips(const std::string& begin, const std::string& piece, int pause_ms) {
    return [=](const Peer& peer, const std::string&) {
        if (peer.say(begin)) peer.say_without_end(piece, milliseconds(pause_ms));
    };
}

/// What a server may do with the connection.
std::vector<Behaviour> transports() {
    const std::string ok = "HTTP/1.1 200 OK\r\n";
    const auto status = [](const std::string& line, const std::string& fields) {
        return says("HTTP/1.1 " + line + "\r\n" + fields + "Content-Length: 2\r\n\r\n{}");
    };
    return {
        {"silence", [](const Peer& peer, const std::string&) { peer.stay_silent(); }},
        {"a slow drip of a header", drips(ok, "X: y\r\n", 50)},
        {"a slow drip of a body", drips(ok + "Content-Length: 100000\r\n\r\n", " ", 50)},
        {"endless header fields", drips(ok, "X: " + std::string(1000, 'y') + "\r\n", 0)},
        {"an endless body", drips(ok + "\r\n", std::string(10000, 'x'), 0)},
        {"an endless chunk", drips(ok + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", "xxxxxxxx", 0)},
        {"a body of 16 EB", drips(ok + "Content-Length: 18446744073709551615\r\n\r\n", "x", 0)},
        {"a length below zero", says(ok + "Content-Length: -5\r\n\r\n{}")},
        {"chunks that are none", says(ok + "Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n")},
        {"an end in the middle", says(ok + "Content-Length: 5000\r\n\r\n{\"choices\": [")},
        {"an end before all", says("")},
        {"no HTTP", says("SSH-2.0-x\r\n")},
        {"escapes as a status", says("HTTP/1.1 400 " + escapes + "\r\nContent-Length: 0\r\n\r\n")},
        {"escapes as a reason",
         says("HTTP/1.1 400 Bad\r\nContent-Length: " + std::to_string(escapes.size()) + "\r\n\r\n" + escapes)},
        {"a redirection to itself", status("302 Found", "Location: /v1/chat/completions\r\n")},
        {"a redirection elsewhere", status("307 Moved", "Location: http://127.0.0.1:1/\r\n")},
        {"trouble", status("500 Trouble", "")},
        {"too many, for ever", status("429 Wait", "Retry-After: 99999999999999999999\r\n")},
        {"too many, for less than nothing", status("429 Wait", "Retry-After: -1\r\n")},
        {"too many, until a date", status("503 Wait", "Retry-After: Fri, 31 Dec 9999 23:59:59 GMT\r\n")},
        {"too many, until nothing", status("429 Wait", "Retry-After: nan\r\n")},
        {"a status of its own", status("999 x", "")},
        {"nothing to say", says("HTTP/1.1 204 No Content\r\n\r\n")},
        {"compression", says(ok + "Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b")},
    };
}

/// What a server may say in good HTTP.
std::vector<Behaviour> contents() {
    std::vector<Behaviour> all;
    const auto add = [&](const std::string& what, const std::string& body) {
        all.push_back({what, says(http_answer(body))});
    };
    add("nothing", "");
    add("no JSON", "I am a server");
    add("bytes that are no text", "{\"choices\": [{\"message\": {\"content\": \"\xff\xfe\x80\"}}]}");
    add("200000 brackets", std::string(200000, '['));
    add("200000 objects", [] {
        std::string deep;
        for (int i = 0; i < 200000; ++i) deep += "{\"choices\":";
        return deep;
    }());
    add("10 MB of blanks", std::string(10 << 20, ' '));
    const json good = {{"choices", {{{"message", {{"content", "B"}}}, {"finish_reason", "stop"}}}}};
    const json wrong[] = {nullptr, 1, -1.5, true, "x", json::array(), json::object(), {{"a", 1}}, json::array({1, 2})};
    for (const auto* place :
         {"/choices", "/choices/0", "/choices/0/message", "/choices/0/message/content", "/choices/0/finish_reason"})
        for (const auto& value : wrong) {
            auto changed = good;
            changed[json::json_pointer(place)] = value;
            add(fmt::format("{} is {}", place, value.dump()), changed.dump());
        }
    auto escaping = good;
    escaping["choices"][0]["message"]["content"] = "B " + escapes + std::string(1 << 20, '(');
    escaping["choices"][0]["finish_reason"] = escapes;
    escaping["usage"] = {{"completion_tokens", 1e300}, {"prompt_tokens", -7}};
    add("escapes", escaping.dump());
    add("an error with escapes", json{{"error", {{"message", escapes}, {"code", escapes}}}}.dump());
    return all;
}

class SlowHostileServers : public ::testing::Test {
  protected:
    SlowHostileServers() {
        write_file_atomically(shop_ / "in/questions.jsonl",
                              R"({"question": "x?", "choices": ["first", "second"], "answer": 1})"
                              "\n"
                              R"({"question": "y?", "choices": ["first", "second"], "answer": 0})"
                              "\n");
        write_file_atomically(shop_ / "in/tasks.jsonl", json{{"task_id", "T/1"},
                                                             {"prompt", "def one():\n"},
                                                             {"entry_point", "one"},
                                                             {"test", "def check(f):\n    assert f() == 1\n"}}
                                                                .dump() +
                                                            "\n");
    }
    std::vector<std::string> chat(const std::string& url) const {
        return eval({"chat", "choice", "--questions", (shop_ / "in/questions.jsonl").string()}, url);
    }
    std::vector<std::string> code(const std::string& url) const {
        return eval({"code", "humaneval", "--tasks", (shop_ / "in/tasks.jsonl").string()}, url);
    }
    std::vector<std::string> eval(std::vector<std::string> what, const std::string& url) const {
        what.insert(what.begin(), "eval");
        for (const auto& more : {std::string("--server"), url, std::string("--timeout"), std::to_string(timeout_s),
                                 std::string("--out"), shop_.out("e")})
            what.push_back(more);
        return what;
    }

    testing::ProgramResult expect_no_harm(const std::vector<std::string>& arguments, const std::string& what) {
        SCOPED_TRACE(what);
        const auto begun = Clock::now();
        auto result = shop_.run(arguments);
        const std::chrono::duration<double> took = Clock::now() - begun;
        EXPECT_LT(took.count(), most_seconds);
        slowest_ = std::max(slowest_, took.count());
        ++cases_;
        EXPECT_EQ(result.signal, 0) << result.errors;
        EXPECT_TRUE(result.code >= 0 && result.code <= 2) << result.code;
        for (const auto& text : {result.output, result.errors}) {
            const auto obeyed = [](char c) { return (static_cast<unsigned char>(c) < 0x20 && c != '\n') || c == 0x7F; };
            EXPECT_TRUE(std::ranges::none_of(text, obeyed)) << json(text).dump(-1, ' ', true);
            EXPECT_EQ(text.find("\xC2\x9B"), std::string::npos);
            EXPECT_EQ(text.find("\xE2\x80\xAE"), std::string::npos);
            EXPECT_LT(text.size(), 20000U);
            for (const auto* words : {"std::", "terminate called"}) EXPECT_EQ(text.find(words), std::string::npos);
        }
        return result;
    }
    /// The records of the answers that the only run has left.
    std::vector<json> records() const {
        std::vector<json> all;
        for (const auto& entry : fs::recursive_directory_iterator(shop_ / "out")) {
            const auto name = entry.path().string();
            if (!name.ends_with(".jsonl") || name.ends_with(".samples.jsonl")) continue;
            std::ifstream file(entry.path());
            std::string line;
            std::getline(file, line);  // what was asked
            while (std::getline(file, line)) all.push_back(json::parse(line));
        }
        return all;
    }
    void TearDown() override { fmt::print("{} cases, the slowest in {:.1f} s\n", cases_, slowest_); }

    static RawServer::Serve with_models(const RawServer::Serve& serve) {
        return [serve](const Peer& peer, const std::string& request) {
            if (request.starts_with("GET"))
                peer.say(http_answer(R"({"data": [{"id": "a-model"}]})"));
            else
                serve(peer, request);
        };
    }

    Workshop shop_;
    int cases_ = 0;
    double slowest_ = 0.0;
};

TEST_F(SlowHostileServers, answers_are_failed_items) {
    for (const auto& behaviour : transports()) {
        shop_.empty_out();
        const RawServer server(with_models(behaviour.serve));
        const auto result = expect_no_harm(chat(server.url()), behaviour.what);
        EXPECT_EQ(result.code, 1) << behaviour.what;
        // Failed items, or, of a server that refuses or is gone, an error.
        const auto answers = records();
        if (answers.empty()) {
            testing::expect_short_error(result);
        } else {
            EXPECT_EQ(answers.size(), 2U) << behaviour.what;
        }
        for (const auto& answer : answers) EXPECT_TRUE(answer.contains("failed")) << behaviour.what << answer.dump();
    }
}

TEST_F(SlowHostileServers, contents_are_judged_or_failed_items) {
    for (const auto& behaviour : contents()) {
        shop_.empty_out();
        const RawServer server(with_models(behaviour.serve));
        expect_no_harm(chat(server.url()), behaviour.what);
        EXPECT_EQ(records().size(), 2U) << behaviour.what;
    }
    for (std::size_t i = 0; i < contents().size(); i += 5) {
        shop_.empty_out();
        const RawServer server(with_models(contents()[i].serve));
        expect_no_harm(code(server.url()), "programs: " + contents()[i].what);
    }
}

TEST_F(SlowHostileServers, lists_of_models) {
    auto all = transports();
    for (const auto& value :
         {json(nullptr), json(1), json("x"), json::array(), json{{"data", 1}}, json{{"data", {1}}},
          json{{"data", {{{"id", 1}}}}}, json{{"data", {{{"id", ""}}}}}, json{{"data", {{{"id", escapes}}}}},
          json{{"data", {{{"id", "../../../../x"}}}}}, json{{"data", {{{"id", std::string(100000, 'a')}}}}},
          json{{"data", {{{"id", std::string(300, '/')}}}}}})
        all.push_back({"models: " + value.dump().substr(0, 100), says(http_answer(value.dump()))});
    const auto answer = says(http_answer(R"({"choices": [{"message": {"content": "B"}}]})"));
    for (const auto& behaviour : all) {
        shop_.empty_out();
        const RawServer server([&](const Peer& peer, const std::string& request) {
            (request.starts_with("GET") ? behaviour.serve : answer)(peer, request);
        });
        expect_no_harm(chat(server.url()), behaviour.what);
        for (const auto& entry : fs::directory_iterator(shop_.path())) {
            const auto name = entry.path().filename().string();
            EXPECT_TRUE(name == "in" || name == "out" || name == "tmp" || name == "logs" || name == "cache") << name;
        }
    }
}

TEST_F(SlowHostileServers, an_interruption_ends_within_a_second) {
    double worst = 0.0;
    for (const auto& behaviour : transports())
        for (const bool first : {true, false}) {  // asked for its model, or for an answer
            shop_.empty_out();
            const RawServer server(first ? behaviour.serve : with_models(behaviour.serve));
            auto arguments = chat(server.url());
            arguments[8] = "600";
            Program program(shop_.alone(arguments), shop_.logs());
            std::this_thread::sleep_for(milliseconds(300));
            if (!program.running()) continue;
            const auto sent = Clock::now();
            program.send(SIGINT);
            while (program.running() && Clock::now() - sent < std::chrono::seconds(20))
                std::this_thread::sleep_for(milliseconds(1));
            const std::chrono::duration<double> took = Clock::now() - sent;
            program.send(SIGKILL);
            EXPECT_LT(took.count(), 1.0) << behaviour.what;
            worst = std::max(worst, took.count());
            ++cases_;
        }
    fmt::print("at most {:.3f} s from SIGINT to the end\n", worst);
}

}  // namespace
}  // namespace cerebellum
