// Chats and programs over HTTP: with a server in this process whose answers are known, and with a real llama-server
// that is killed in the middle.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>

#include "cerebellum/core/proc_files.h"
#include "cerebellum/evaluate/audit_log.h"
#include "cerebellum/httplib.h"
#include "tests/e2e/program.h"

namespace cerebellum {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::HasSubstr;
using testing::Program;
using testing::run_program;
using testing::small_model;
using testing::TemporaryFolder;
using testing::with_program;

/// Speaks OpenAI's protocol; replies what `answer(message, temperature)` says.
class FakeServer {
  public:
    using Answer = std::function<std::string(const std::string& message, double temperature)>;
    explicit FakeServer(Answer answer) {
        server_.Get("/v1/models", [](const httplib::Request&, httplib::Response& response) {
            response.set_content(R"({"data": [{"id": "a-model"}]})", "application/json");
        });
        server_.Post("/v1/chat/completions", [answer](const httplib::Request& request, httplib::Response& response) {
            const auto asked = json::parse(request.body);
            const auto text = answer(asked["messages"][0]["content"].get<std::string>(), asked["temperature"]);
            const json body = {{"choices", {{{"message", {{"content", text}}}, {"finish_reason", "stop"}}}}};
            response.set_content(body.dump(), "application/json");
        });
        port_ = server_.bind_to_any_port("127.0.0.1");
        thread_ = std::thread([this] { server_.listen_after_bind(); });
        while (!server_.is_running()) std::this_thread::yield();
    }
    ~FakeServer() {
        server_.stop();
        thread_.join();
    }
    FakeServer(const FakeServer&) = delete;
    FakeServer& operator=(const FakeServer&) = delete;
    std::string url() const { return "http://127.0.0.1:" + std::to_string(port_); }

  private:
    httplib::Server server_;
    int port_ = 0;
    std::thread thread_;
};

class Chat : public ::testing::Test {
  protected:
    fs::path path(const std::string& name) const { return work_ / name; }

    /// Questions "Number I?" whose answer is B.
    std::string write_questions(int n) const {
        std::string lines;
        for (int i = 0; i < n; ++i)
            lines += fmt::format(R"({{"question": "Number {}?", "choices": ["first", "second", "third"], "answer": 1}})"
                                 "\n",
                                 i);
        write_file_atomically(path("questions.jsonl"), lines);
        return path("questions.jsonl").string();
    }
    std::vector<std::string> chat(int n_questions) const {
        return {"eval",   "chat", "choice", "--questions", write_questions(n_questions), "--out", path("out").string(),
                "--json", "-q"};
    }
    testing::ProgramResult run(std::vector<std::string> arguments, const std::vector<std::string>& more) const {
        arguments.insert(arguments.end(), more.begin(), more.end());
        return run_program(arguments, work_.path(), std::chrono::minutes(8));
    }
    std::string only_log() const {
        std::vector<std::string> logs;
        for (const auto& entry : fs::directory_iterator(path("out")))
            if (entry.path().string().ends_with(".jsonl") && !entry.path().string().ends_with(".samples.jsonl"))
                logs.push_back(entry.path().string());
        EXPECT_EQ(logs.size(), 1U);
        return logs.empty() ? "" : logs.front();
    }

    TemporaryFolder work_;
};

int number_in(const std::string& message) {
    return std::stoi(message.substr(message.find("Number ") + 7));
}

TEST_F(Chat, says_which_temperatures_differ) {
    // A tenth is wrong everywhere, half at 0.7.
    const FakeServer server([](const std::string& message, double temperature) {
        const int number = number_in(message);
        const bool wrong = number % 10 == 0 || (temperature > 0.5 && number % 2 == 0);
        return std::string(wrong ? "The answer is C." : "**B**");
    });
    const auto result = run(chat(100), {"--server", server.url(), "--temperature", "0,0.3,0.7"});
    ASSERT_EQ(result.code, 0) << result.errors;
    const auto of_temperature = json::parse(result.output);
    ASSERT_EQ(of_temperature.size(), 3U);
    EXPECT_EQ(of_temperature[0]["metrics"]["acc"]["score"], 0.9);
    EXPECT_EQ(of_temperature[1]["against_first"]["acc"]["significant"], false);
    EXPECT_EQ(of_temperature[1]["against_first"]["acc"]["mcnemar_p"], 1.0);
    EXPECT_EQ(of_temperature[2]["against_first"]["acc"]["significant"], true);
    EXPECT_EQ(of_temperature[2]["against_first"]["acc"]["lost"], 40);
    EXPECT_EQ(of_temperature[2]["temperature"], 0.7);
}

TEST_F(Chat, empty_answers_are_no_silent_failures) {
    const FakeServer server([](const std::string& message, double) {
        return std::string(number_in(message) < 3 ? " \n" : number_in(message) < 6 ? "I do not know." : "B");
    });
    const auto result = run(chat(200), {"--server", server.url()});
    EXPECT_EQ(result.code, 1);
    EXPECT_THAT(result.errors, HasSubstr("6 of 200 answers are empty or could not be parsed"));
    EXPECT_THAT(json::parse(result.output)[0]["not_published"].get<std::string>(), HasSubstr("0.5 %"));
    const auto audited = run({"eval", "audit", only_log(), "--json"}, {});
    EXPECT_EQ(audited.code, 1);
    const auto findings = json::parse(audited.output)[0];
    using Ids = std::set<std::string>;  // answers come in any order
    EXPECT_EQ(findings["empty"].get<Ids>(), Ids({"0", "1", "2"}));
    EXPECT_EQ(findings["unparsed"].get<Ids>(), Ids({"3", "4", "5"}));
    EXPECT_EQ(findings["published"], false);
    EXPECT_EQ(findings["identical_wrong"][0]["raw"], "I do not know.");
}

TEST_F(Chat, stored_answers_are_judged_again_and_the_old_score_is_kept) {
    int asked = 0;
    std::mutex mutex;
    const FakeServer server([&](const std::string& message, double) {
        const std::lock_guard lock(mutex);
        ++asked;
        return std::string(number_in(message) % 4 == 0 ? "A" : "\\boxed{B}");
    });
    ASSERT_EQ(run(chat(40), {"--server", server.url()}).code, 0);
    EXPECT_EQ(asked, 40);
    const auto log = only_log();
    auto content = read_audit_log(log);  // as a parser that missed boxed answers left it
    for (auto& record : content.records)
        if (record["raw"] == "\\boxed{B}")
            record.update({{"parsed", ""}, {"correct", false}, {"metrics", {{"acc", 0.0}}}});
    write_audit_log(log, content);
    const auto result = run({"eval", "rejudge", log, "--reason", "boxed answers were missed", "--json"}, {});
    ASSERT_EQ(result.code, 0) << result.errors;
    const auto entry = json::parse(result.output)[0]["rejudgement"];
    EXPECT_EQ(entry["old_score"], 0.0);
    EXPECT_EQ(entry["new_score"], 0.75);
    EXPECT_EQ(entry["changed"].size(), 30U);
    EXPECT_EQ(asked, 40);
    auto summary = fs::path(log).replace_extension(".summary.json").string();
    const auto published = json::parse(read_file(summary));
    EXPECT_EQ(published["metrics"]["acc"]["score"], 0.75);
    EXPECT_EQ(published["rejudged"][0]["reason"], "boxed answers were missed");
    const auto card = run({"compare-evals", summary}, {});
    EXPECT_THAT(card.output, HasSubstr("because boxed answers were missed: 0.00 % before, 75.00 % after"));
}

TEST_F(Chat, programs_are_judged_and_judged_again) {
    if (!fs::exists("/usr/bin/bwrap")) GTEST_SKIP() << "no bubblewrap";
    std::string tasks;
    for (const auto* name : {"twice", "thrice", "never"})
        tasks += json{{"task_id", fmt::format("T/{}", name)},
                      {"prompt", fmt::format("def {}(x):\n    \"\"\" {} x \"\"\"\n", name, name)},
                      {"entry_point", name},
                      {"test", fmt::format("def check(candidate):\n    assert candidate(5) == {}\n",
                                           name == std::string("twice") ? 10 : 15)}}
                     .dump() +
                 "\n";
    write_file_atomically(path("tasks.jsonl"), tasks);
    const FakeServer server([](const std::string& message, double) -> std::string {
        if (message.find("def twice") != std::string::npos)
            return "Here:\n```python\ndef twice(x):\n    return 2 * x\n```\nDone.";
        if (message.find("def thrice") != std::string::npos) return "    y = x + x\n    return x + y\n";
        return "I will not.";
    });
    const auto result = run({"eval", "code", "humaneval", "--tasks", path("tasks.jsonl").string(), "--server",
                             server.url(), "--out", path("out").string(), "--json", "-q"},
                            {});
    ASSERT_EQ(result.code, 0) << result.errors;
    const auto summary = json::parse(result.output)[0];
    EXPECT_NEAR(summary["metrics"]["pass@1"]["score"].get<double>(), 2.0 / 3.0, 1e-12);
    EXPECT_EQ(summary["sandbox"], "bubblewrap");
    const auto log = only_log();
    std::map<std::string, std::string> solutions;
    std::ifstream samples(fs::path(log).replace_extension(".samples.jsonl"));
    for (std::string line; std::getline(samples, line);) {
        const auto sample = json::parse(line);
        solutions[sample["task_id"]] = sample["solution"];
    }
    EXPECT_EQ(solutions.at("T/twice"), "def twice(x):\n    return 2 * x\n");
    EXPECT_THAT(solutions.at("T/thrice"), HasSubstr("def thrice(x):"));
    auto content = read_audit_log(log);
    for (auto& record : content.records)
        record.update({{"parsed", "wrong"}, {"correct", false}, {"metrics", {{"pass@1", 0.0}}}});
    write_audit_log(log, content);
    const auto again = run(
        {"eval", "rejudge", log, "--tasks", path("tasks.jsonl").string(), "--reason", "indentation was lost", "--json"},
        {});
    ASSERT_EQ(again.code, 0) << again.errors;
    EXPECT_NEAR(json::parse(again.output)[0]["rejudgement"]["new_score"].get<double>(), 2.0 / 3.0, 1e-12);
    write_file_atomically(path("tasks.jsonl"), tasks + tasks);
    const auto refused = run({"eval", "rejudge", log, "--tasks", path("tasks.jsonl").string(), "--reason", "x"}, {});
    EXPECT_EQ(refused.code, 1);
    EXPECT_THAT(refused.errors, HasSubstr("not the file of tasks"));
}

// A real llama-server ------------------------------------------------------------------------------------------------

/// Processes that were started with `text` in their command line.
std::set<pid_t> processes_with(const std::string& program, const std::string& text) {
    std::set<pid_t> found;
    for (const pid_t process : all_processes()) {
        const auto line = proc_text(fmt::format("/proc/{}/cmdline", process));
        const auto first = line.substr(0, line.find('\0'));
        if (fs::path(first).filename() == program && line.find(text) != std::string::npos) found.insert(process);
    }
    return found;
}

class RealServer : public Chat {
  protected:
    void SetUp() override {
        if (!testing::have_referees()) GTEST_SKIP() << "no llama.cpp tools";
        fs::create_symlink(small_model(), path("model.gguf"));  // a name of our own in the server's command line
    }
    std::vector<std::string> command(int n_questions) const {
        auto arguments = chat(n_questions);
        arguments.insert(arguments.end(),
                         {path("model.gguf").string(), "--llama-server",
                          (fs::path(CEREBELLUM_REFEREE_BIN) / "llama-server").string(), "--parallel", "2", "--ctx",
                          "256", "--max-tokens", "6", "--threads", "1", "--retries", "1"});
        return arguments;
    }
    std::set<pid_t> servers() const { return processes_with("llama-server", path("model.gguf").string()); }
    std::size_t answers() const {
        if (!fs::exists(path("out")) || fs::is_empty(path("out"))) return 0;
        const auto content = read_file(only_log());
        const auto lines = static_cast<std::size_t>(std::ranges::count(content, '\n'));
        return lines > 0 ? lines - 1 : 0;
    }
    /// Starts the run and waits until some questions were answered.
    std::unique_ptr<Program> started(const std::vector<std::string>& arguments, std::size_t wanted) const {
        auto program = std::make_unique<Program>(with_program(arguments), work_.path());
        const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(5);
        while (program->running() && answers() < wanted && std::chrono::steady_clock::now() < deadline)
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        return program;
    }
    /// The model knows nothing and its answers name no letter, so nothing is published; but they all have to be there.
    void expect_complete(const std::vector<std::string>& arguments, std::size_t n, std::size_t kept,
                         const std::string& before) const {
        const auto result = run_program(arguments, work_.path(), std::chrono::minutes(8));
        ASSERT_THAT(result.code, ::testing::AnyOf(0, 1)) << result.errors;
        const auto log = read_audit_log(only_log());
        EXPECT_EQ(log.records.size(), n);
        std::set<std::string> ids;
        for (const auto& record : log.records) ids.insert(record["id"].get<std::string>());
        EXPECT_EQ(ids.size(), n);
        EXPECT_GE(kept, 1U);
        EXPECT_LT(kept, n);
        EXPECT_EQ(read_file(only_log()).substr(0, before.size()), before);  // nothing was asked twice
        EXPECT_TRUE(servers().empty());
    }
};

std::string whole_lines(const std::string& text) {
    return text.substr(0, text.rfind('\n') + 1);
}

TEST_F(RealServer, goes_on_after_kill_9_and_leaves_no_server_behind) {
    constexpr std::size_t n = 60;
    const auto arguments = command(n);
    auto program = started(arguments, 5);
    ASSERT_TRUE(program->running());
    EXPECT_EQ(servers().size(), 1U);
    program->send(SIGKILL);
    program->wait();
    for (int i = 0; i < 500 && !servers().empty(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    EXPECT_TRUE(servers().empty());
    const auto before = whole_lines(read_file(only_log()));
    expect_complete(arguments, n, answers(), before);
}

TEST_F(RealServer, keeps_what_was_answered_before_the_server_was_killed) {
    constexpr std::size_t n = 60;
    const auto arguments = command(n);
    auto program = started(arguments, 5);
    ASSERT_TRUE(program->running());
    for (const auto server : servers()) kill(server, SIGKILL);
    const auto result = program->wait();
    EXPECT_EQ(result.code, 1);
    EXPECT_THAT(result.errors, HasSubstr("run the same command again"));
    const auto before = whole_lines(read_file(only_log()));
    expect_complete(arguments, n, answers(), before);
}

TEST_F(RealServer, is_measured_under_load) {
    const auto result = run({"eval",
                             "serve",
                             path("model.gguf").string(),
                             "--llama-server",
                             (fs::path(CEREBELLUM_REFEREE_BIN) / "llama-server").string(),
                             "--parallel",
                             "2",
                             "--ctx",
                             "128,256",
                             "--requests",
                             "4",
                             "--prompt-words",
                             "10",
                             "--max-tokens",
                             "8",
                             "--threads",
                             "1",
                             "--no-repack",
                             "--json",
                             "-q"},
                            {});
    ASSERT_EQ(result.code, 0) << result.errors;
    const auto served = json::parse(result.output);
    EXPECT_EQ(served["kv"], "q8_0");
    EXPECT_EQ(served["largest_context_per_slot"], 256);
    ASSERT_EQ(served["contexts"].size(), 2U);
    for (const auto& context : served["contexts"]) {
        EXPECT_EQ(context["requests"], 4);
        EXPECT_GT(context["tokens_per_second"], 0.0);
        EXPECT_GT(context["tokens_per_second_per_slot"], 0.0);
        EXPECT_GT(context["first_token_seconds"], 0.0);
        EXPECT_GT(context["peak_memory_bytes"], 10'000'000);
    }
    write_file_atomically(path("serve.json"), result.output);
    EXPECT_THAT(run({"compare-evals", path("serve.json").string()}, {}).output, HasSubstr("served t/s (2 x 256)"));
}

}  // namespace
}  // namespace cerebellum
