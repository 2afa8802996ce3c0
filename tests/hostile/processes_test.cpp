// Signals at any moment, kill -9 again and again, and two processes on one thing.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>

#include "cerebellum/evaluate/raw_server_support_test.h"
#include "cerebellum/journal/journal.h"
#include "tests/hostile/small_jobs.h"

namespace cerebellum {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::Program;
using testing::with_little_text;
using testing::Workshop;
using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr double most_seconds = 1.0;  // from a signal to the end

struct Command {
    std::string name;
    std::vector<std::string> arguments;
    std::vector<std::string> outputs;  // in `out`; whose bytes do not depend on when they were made
    bool ends = true;                  // by itself
};

std::string llama_server() {
    return (fs::path(CEREBELLUM_REFEREE_BIN) / "llama-server").string();
}

/// Every command that works for long on large models, on the workshop's files.
std::vector<Command> commands(const Workshop& shop, const std::string& silent_server) {
    const auto model = shop.model().string(), text = shop.text().string(), journal = shop.journal().string();
    const auto built = (shop / "in/built.gguf").string(), questions = (shop / "in/questions.jsonl").string();
    const auto measuring = [&](std::vector<std::string> arguments) { return with_little_text(arguments, text); };
    std::vector<Command> all = {
        {"quantize",
         measuring({"quantize", model, "--size", "8bpw", "-o", shop.out("q.gguf")}),
         {"q.gguf", "q.recipe.json", "q.imatrix.gguf"}},
        {"ablate", measuring({"ablate", model, "--journal", shop.out("a.db")}), {}},
        {"ablate --no-replay", measuring({"ablate", model, "--no-replay", "--journal", shop.out("n.db")}), {}},
        {"allocate", {"allocate", model, "--size", "8bpw", "--journal", journal, "-o", shop.out("r.json")}, {"r.json"}},
        {"frontier", {"frontier", model, "--journal", journal, "-o", shop.out("f.json"), "-q"}, {"f.json"}},
        {"build", {"build", model, "--preset", "Q4_K_M", "--threads", "1", "-o", shop.out("b.gguf"), "-q"}, {"b.gguf"}},
        {"imatrix compute",
         {"imatrix", "compute", model, "--text", text, "--ctx", "32", "--threads", "1", "-o", shop.out("i.gguf"), "-q"},
         {"i.gguf"}},
        {"eval ppl", {"eval", "ppl", model, "--text", text, "--ctx", "32", "--threads", "1", "-q"}, {}},
        {"eval kld", {"eval", "kld", model, built, "--text", text, "--ctx", "32", "--threads", "1", "-q"}, {}},
        {"eval speed", {"eval", "speed", model, "--prompt", "64", "--generate", "32", "--threads", "1", "-q"}, {}},
        {"eval choice",
         {"eval", "choice", "choice", model, "--questions", questions, "--out", shop.out("c"), "--threads", "1", "-q"},
         {}},
        {"eval chat",
         {"eval", "chat", "choice", "--questions", questions, "--server", silent_server, "--out", shop.out("chat"),
          "-q"},
         {},
         false},
        {"verify", measuring({"verify", model, built, "--journal", shop.out("v.db")}), {}},
        {"report", {"report", model, "--journal", journal, "-o", shop.out("r.html"), "-q"}, {"r.html"}},
        {"compare", {"compare", model, built}, {}},
        {"journal merge", {"journal", "merge", shop.out("m.db"), journal}, {}},
        {"card", {"card", built, "--journal", journal, "-o", shop.out("README.md"), "--force", "-q"}, {"README.md"}},
        {"memory", {"memory", model}, {}},
        {"publish",
         measuring({"publish", model, "--size", "8bpw", "--folder", shop.out("p"), "--file-name", "p"}),
         {"p/p.gguf", "p/p.recipe.json"}},
    };
    all.push_back({"convert",
                   {"convert", (shop / "hf").string(), "-o", shop.out("hf.gguf"), "--python", "python3", "-q"},
                   {},
                   false});
    if (testing::have_referees())
        all.push_back({"eval serve",
                       {"eval", "serve", model, "--llama-server", llama_server(), "--parallel", "1", "--ctx", "64",
                        "--requests", "2", "--prompt-words", "4", "--max-tokens", "8", "--threads", "1", "-q"},
                       {}});
    return all;
}

/// A converter that does not want to end, with a child that does not either.
void write_stubborn_converter(const Workshop& shop) {
    fs::create_directories(shop / "data/converter");
    fs::create_directories(shop / "hf");
    write_file_atomically(shop / "hf/config.json", "{}");
    write_file_atomically(shop / "hf/model.safetensors", "weights");
    write_file_atomically(shop / "data/converter/convert_hf_to_gguf.py",
                          "import os, signal, sys, time\n"
                          "for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP): signal.signal(s, signal.SIG_IGN)\n"
                          "os.fork()\n"
                          "time.sleep(100)\n");
}

class SlowHostileProcesses : public ::testing::Test {
  protected:
    ~SlowHostileProcesses() override { ::unsetenv("CEREBELLUM_DATA"); }

    void prepare() {
        shop_.measure();
        const auto built = shop_.run(
            {"build", shop_.model(), "--preset", "Q4_0", "--threads", "1", "-o", (shop_ / "in/built.gguf").string()});
        ASSERT_EQ(built.code, 0) << built.errors;
        std::string questions;
        for (int i = 0; i < 40; ++i)
            questions += fmt::format(R"({{"question": "Number {}?", "choices": ["one", "two"], "answer": 0}})"
                                     "\n",
                                     i);
        write_file_atomically(shop_ / "in/questions.jsonl", questions);
        write_stubborn_converter(shop_);
        ::setenv("CEREBELLUM_DATA", (shop_ / "data").c_str(), 1);
    }

    /// The seconds that it took to end; negative where it had ended by itself.
    double interrupted(const Command& command, int signal, Seconds after) const {
        Program program(shop_.alone(command.arguments), shop_.logs());
        const auto session = program.process();
        const auto begun = Clock::now();
        while (program.running() && Clock::now() - begun < after)
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        const bool was_running = program.running();
        const auto sent = Clock::now();
        program.send(signal);
        while (program.running() && Clock::now() - sent < std::chrono::seconds(20))
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        const Seconds took = Clock::now() - sent;
        program.send(SIGKILL);
        const auto result = program.wait();
        if (was_running && result.code != 0) {
            // In front of the first instruction of ours the signal does what it does to every process.
            EXPECT_TRUE(result.code == 1 || result.code == -1) << result.code << result.errors;
            EXPECT_TRUE(result.signal == 0 || (result.signal == signal && result.errors.empty()))
                << result.signal << " " << result.errors;
        }
        EXPECT_THAT(testing::lasting_processes_of_session(session), IsEmpty());
        EXPECT_THAT(shop_.litter(), IsEmpty());
        return was_running ? took.count() : -1.0;
    }

    std::map<std::string, std::string> made(const Command& command) const {
        std::map<std::string, std::string> bytes;
        for (const auto& output : command.outputs) bytes[output] = read_file(shop_.out(output));
        return bytes;
    }

    Workshop shop_;
};

TEST_F(SlowHostileProcesses, end_within_a_second_of_a_signal_and_go_on_later) {
    ASSERT_NO_FATAL_FAILURE(prepare());
    const testing::RawServer silent(
        [](const testing::RawServer::Peer& peer, const std::string&) { peer.stay_silent(); });
    std::mt19937 random(5);
    for (const auto& command : commands(shop_, silent.url())) {
        SCOPED_TRACE(command.name);
        shop_.empty_out();
        Seconds whole(2.0);
        std::map<std::string, std::string> expected;
        if (command.ends) {
            const auto begun = Clock::now();
            const auto result = shop_.run(command.arguments, std::chrono::seconds(200));
            whole = Clock::now() - begun;
            ASSERT_EQ(result.code, 0) << result.errors;
            expected = made(command);
            shop_.empty_out();
        }
        double worst = 0.0;
        int hits = 0;
        for (const int signal : {SIGINT, SIGTERM, SIGHUP})
            for (int i = 0; i < 3; ++i) {
                const auto took = interrupted(command, signal, whole * (random() % 1000) / 1000);
                if (took < 0.0) {
                    shop_.empty_out();
                    continue;
                }
                ++hits;
                worst = std::max(worst, took);
            }
        EXPECT_LT(worst, most_seconds);
        fmt::print("{:<20} {:6.2f} s alone, {} signals, at most {:.3f} s\n", command.name, whole.count(), hits, worst);
        if (!command.ends) continue;
        auto again = shop_.run(command.arguments, std::chrono::seconds(200));
        if (again.code == 1 && again.errors.find("--force") != std::string::npos) {  // it was done before the signal
            again.code = 0;
        }
        EXPECT_EQ(again.code, 0) << again.errors;
        EXPECT_TRUE(made(command) == expected);
    }
}

TEST_F(SlowHostileProcesses, survive_being_killed_again_and_again) {
    const char* wanted = std::getenv("CEREBELLUM_KILLS");
    const int kills = wanted != nullptr ? std::atoi(wanted) : 20;
    const Command command = {
        "quantize",
        with_little_text({"quantize", shop_.model(), "--size", "8bpw", "-o", shop_.out("q.gguf")}, shop_.text()),
        {"q.gguf", "q.recipe.json", "q.imatrix.gguf", "q.tensor-types.txt"}};
    const auto begun = Clock::now();
    const auto undisturbed = shop_.run(command.arguments);
    const Seconds whole = Clock::now() - begun;
    ASSERT_EQ(undisturbed.code, 0) << undisturbed.errors;
    const auto expected = made(command);
    shop_.empty_out();
    std::mt19937 random(6);
    int killed = 0, completed = 0;
    const auto expect_complete = [&] {
        EXPECT_TRUE(made(command) == expected);
        EXPECT_TRUE(fs::exists(shop_.out("q.results.json")));
        EXPECT_THAT(shop_.litter(), IsEmpty());
        shop_.empty_out();
        ++completed;
    };
    while (killed < kills && !HasFailure()) {
        Program program(shop_.alone(command.arguments), shop_.logs());
        const auto session = program.process();
        // What is in the journal already is not measured again: early moments are the ones that meet work.
        std::this_thread::sleep_for(whole * (random() % 1000) / 1000 * (random() % 2 == 0 ? 1.0 : 0.3));
        program.send(SIGKILL);
        const auto result = program.wait();
        if (result.signal == SIGKILL) {
            ++killed;
            EXPECT_THAT(testing::lasting_processes_of_session(session), IsEmpty());
            // The model has its name as a whole or not at all.
            if (fs::exists(shop_.out("q.gguf"))) {
                EXPECT_TRUE(read_file(shop_.out("q.gguf")) == expected.at("q.gguf"));
            }
        } else {
            // The kill before this run may have come when all was done; then all is there, and not to be replaced.
            if (result.code != 0) {
                EXPECT_THAT(result.errors, HasSubstr("exists already"));
            }
            expect_complete();
        }
    }
    const auto last = shop_.run(command.arguments);
    if (last.code != 0) {
        EXPECT_THAT(last.errors, HasSubstr("--force"));  // the last kill came when all was done
    }
    expect_complete();
    fmt::print("{} kills in {} jobs of {:.2f} s, each to the same bytes\n", killed, completed, whole.count());
}

TEST_F(SlowHostileProcesses, of_two_on_one_thing_one_works_and_the_other_says_why_not) {
    const auto measure = [&](const std::string& journal) {
        return with_little_text({"ablate", shop_.model(), "--journal", shop_.out(journal)}, shop_.text());
    };
    const auto make = with_little_text(
        {"quantize", shop_.model(), "--size", "8bpw", "-o", shop_.out("q.gguf"), "--journal", shop_.out("q.db")},
        shop_.text());
    const auto begun_with = [&](const std::vector<std::string>& arguments, const fs::path& lock) {
        auto program = std::make_unique<Program>(shop_.alone(arguments), shop_.logs());
        while (program->running() && !fs::exists(lock)) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        program->send(SIGSTOP);
        return program;
    };
    {  // one journal
        auto first = begun_with(measure("a.db"), shop_.out("a.db.lock"));
        const auto second = shop_.run(measure("a.db"));
        EXPECT_EQ(second.code, 1);
        EXPECT_THAT(second.errors, AllOf(HasSubstr(shop_.out("a.db")), HasSubstr("writing to it")));
        first->send(SIGCONT);
        EXPECT_EQ(first->wait().code, 0);
        EXPECT_EQ(shop_.run({"journal", "show", shop_.out("a.db")}).code, 0);
    }
    {  // one output
        auto first = begun_with(make, shop_.out("q.gguf.lock"));
        auto other = make;
        other.back() = "-v";
        other.push_back("--force");
        const auto second = shop_.run(other);
        EXPECT_EQ(second.code, 1);
        EXPECT_THAT(second.errors, AllOf(HasSubstr("another run"), HasSubstr(shop_.out("q.gguf.lock"))));
        first->send(SIGCONT);
        EXPECT_EQ(first->wait().code, 0);
        EXPECT_EQ(shop_.run({"inspect", shop_.out("q.gguf")}).code, 0);
    }
    {  // one folder of what is remembered about files: nothing there is anybody's alone
        std::vector<std::unique_ptr<Program>> all;
        fs::remove_all(shop_ / "cache");
        for (int i = 0; i < 6; ++i)
            all.push_back(std::make_unique<Program>(shop_.alone(measure(fmt::format("c{}.db", i))), shop_.logs()));
        for (auto& one : all) EXPECT_EQ(one->wait().code, 0);
        const auto digest = [&](int i) {
            const auto shown = shop_.run({"journal", "show", "--json", shop_.out(fmt::format("c{}.db", i))});
            return nlohmann::json::parse(shown.output).at("sha256").get<std::string>();
        };
        for (int i = 1; i < 6; ++i) EXPECT_EQ(digest(i), digest(0));
    }
    EXPECT_THAT(shop_.litter(), IsEmpty());
}

}  // namespace
}  // namespace cerebellum
