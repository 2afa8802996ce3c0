#include "cerebellum/core/child_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"

namespace cerebellum {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Said {
    int code = 0;
    std::vector<std::string> lines;
};

Said run_shell(const std::string& script, std::vector<std::string> environment = {}) {
    NoProgress progress;
    Said said;
    said.code = run_child(
        {{"sh", "-c", script}, std::move(environment)}, [&](std::string_view line) { said.lines.emplace_back(line); },
        progress);
    return said;
}

TEST(ChildProcess, GivesLinesOfBothStreamsAndTheExitCode) {
    const auto said = run_shell("echo one; echo two >&2; printf '10%%\\r20%%\\rend'; exit 3");
    EXPECT_EQ(said.code, 3);
    EXPECT_THAT(said.lines, ElementsAre("one", "two", "10%", "20%", "end"));
}

TEST(ChildProcess, HasNoInputAndSaysWhichSignalEndedIt) {
    EXPECT_EQ(run_shell("cat; kill -9 $$").code, 128 + SIGKILL);
}

TEST(ChildProcess, ChangesAndRemovesVariables) {
    ::setenv("CEREBELLUM_TEST_KEPT", "kept", 1);
    ::setenv("CEREBELLUM_TEST_GONE", "there", 1);
    const auto said = run_shell("echo $CEREBELLUM_TEST_KEPT-$CEREBELLUM_TEST_GONE-$CEREBELLUM_TEST_NEW",
                                {"CEREBELLUM_TEST_GONE", "CEREBELLUM_TEST_NEW=new"});
    ::unsetenv("CEREBELLUM_TEST_KEPT");
    ::unsetenv("CEREBELLUM_TEST_GONE");
    EXPECT_THAT(said.lines, ElementsAre("kept--new"));
}

TEST(ChildProcess, NamesWhatCannotBeStarted) {
    NoProgress progress;
    try {
        run_child(
            {{"/no/such/program"}, {}}, [](std::string_view) {}, progress);
        FAIL() << "started";
    } catch (const Error& error) {
        EXPECT_THAT(error.what(), HasSubstr("/no/such/program: No such file"));
    }
}

TEST(ChildProcess, WritesIntoAFileAndLeavesErrorsToUs) {
    const ScratchFile said(std::filesystem::temp_directory_path() / fmt::format("cerebellum-child-{}", ::getpid()));
    const Descriptor file(::open(said.path().c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    ASSERT_GE(file.number(), 0);
    ::testing::internal::CaptureStderr();
    ChildCommand command{{"sh", "-c", "echo said; echo complained >&2; kill -15 $$"}};
    command.output = file.number();
    command.errors_are_ours = true;
    ChildProcess child(command);
    EXPECT_EQ(child.output(), -1);
    const auto end = child.wait();
    EXPECT_EQ(::testing::internal::GetCapturedStderr(), "complained\n");
    EXPECT_EQ(end.signal, SIGTERM);
    EXPECT_EQ(end.code, 128 + SIGTERM);
    EXPECT_EQ(read_file(said.path()), "said\n");
}

TEST(ChildProcess, EndsWhatDoesNotListenAndWhatItHasStarted) {
    const ChildCommand command{
        {"sh", "-c", "trap '' TERM; (trap '' TERM; sleep 60) & echo ready; while :; do sleep 1; done"}};
    ChildProcess child(command);
    char word[16];
    ASSERT_GT(::read(child.output(), word, sizeof word), 0);
    EXPECT_FALSE(child.ended());
    const auto begun = std::chrono::steady_clock::now();
    child.end(std::chrono::milliseconds(200));
    EXPECT_LT(std::chrono::steady_clock::now() - begun, std::chrono::seconds(2));
    EXPECT_EQ(child.wait().signal, SIGKILL);
    EXPECT_EQ(::read(child.output(), word, sizeof word), 0) << "somebody still has the other end";
}

TEST(ChildProcess, HasOnlyTheVariablesThatItIsGivenAndRunsWhatComesBeforeTheProgram) {
    ChildCommand command{{"/bin/sh", "-c", "echo $CEREBELLUM_TEST-$HOME; cat <&7"}};
    command.environment = {"CEREBELLUM_TEST=given"};
    command.environment_is_all = true;
    const Descriptor file(::open("/dev/null", O_RDONLY));
    command.before_exec = [&] { ::dup2(file.number(), 7); };
    NoProgress progress;
    std::vector<std::string> lines;
    const int code = run_child(
        command, [&](std::string_view line) { lines.emplace_back(line); }, progress);
    EXPECT_EQ(code, 0);
    EXPECT_THAT(lines, ElementsAre("given-"));
}

TEST(ChildProcess, ManyThreadsStartThemAtATime) {
    std::vector<std::jthread> threads;
    std::atomic<int> n_good = 0;
    for (int i = 0; i < 8; ++i)
        threads.emplace_back([&n_good] {
            for (int j = 0; j < 20; ++j) {
                const ChildCommand command{{"true"}};
                n_good += ChildProcess(command).wait().code == 0 ? 1 : 0;
            }
        });
    threads.clear();
    EXPECT_EQ(n_good, 160);
}

TEST(ChildProcess, StoppingEndsTheProgramAndWhatItStarted) {
    NoProgress progress;
    pid_t grandchild = 0;
    EXPECT_THROW(run_child(
                     {{"sh", "-c", "sleep 60 & echo $!; wait"}, {}},
                     [&](std::string_view line) {
                         grandchild = std::stoi(std::string(line));
                         Progress::stop_requested = true;
                     },
                     progress),
                 Interrupted);
    Progress::stop_requested = false;
    ASSERT_GT(grandchild, 0);
    // It may be a zombie for as long as nobody has fetched it, but it does not run on.
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    const auto state = [&] {
        const auto said = run_shell("sed 's/.*) //' /proc/" + std::to_string(grandchild) + "/stat 2>/dev/null || true");
        return said.lines.empty() ? 'X' : said.lines.front().front();
    };
    while (state() != 'X' && state() != 'Z' && std::chrono::steady_clock::now() < deadline)
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT_THAT(state(), ::testing::AnyOf('X', 'Z'));
}

}  // namespace
}  // namespace cerebellum
