// Whatever happens while a file is written, its name shows the old content or the new one.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>

#include "cerebellum/gguf/gguf_file.h"
#include "tests/e2e/program.h"

namespace cerebellum {
namespace {

using ::testing::HasSubstr;
using testing::Program;
using testing::ProgramResult;
using testing::small_model;
using testing::TemporaryFolder;

namespace fs = std::filesystem;

class SafeOutput : public ::testing::Test {
  protected:
    SafeOutput() {
        fs::create_directory(work_ / "out");
        write_file_atomically(output(), old_);
    }
    fs::path output() const { return work_ / "out" / "small.gguf"; }

    std::vector<std::string> command(const std::vector<std::string>& environment) const {
        std::vector<std::string> all = {"env"};
        all.insert(all.end(), environment.begin(), environment.end());
        const std::vector<std::string> build = {CEREBELLUM_EXECUTABLE,
                                                "build",
                                                small_model().string(),
                                                "--preset",
                                                "Q8_0",
                                                "-o",
                                                output().string(),
                                                "--force",
                                                "--threads",
                                                "2",
                                                "--quiet"};
        all.insert(all.end(), build.begin(), build.end());
        return all;
    }
    ProgramResult run(const std::vector<std::string>& environment) const {
        return Program(command(environment), work_.path()).wait();
    }
    ProgramResult run_failing(int at, const std::string& with) const {
        return run({"LD_PRELOAD=" CEREBELLUM_FAILING_CALLS, fmt::format("FAIL_AT={}", at), "FAIL_WITH=" + with});
    }
    /// How many calls there are that can fail. The new content is kept for comparison.
    int learn() {
        const auto count = work_ / "count";
        const auto result = run({"LD_PRELOAD=" CEREBELLUM_FAILING_CALLS, "FAIL_COUNT=" + count.string()});
        EXPECT_EQ(result.code, 0) << result.errors;
        new_ = read_file(output());
        EXPECT_NE(new_, old_);
        write_file_atomically(output(), old_);
        return std::stoi(read_file(count));
    }

    /// The output is old or new, and nothing else lies beside it but what a killed process could not remove.
    void expect_sound(bool killed) {
        const std::string content = read_file(output());
        EXPECT_TRUE(content == old_ || content == new_) << content.size() << " bytes";
        for (const auto& entry : fs::directory_iterator(work_ / "out")) {
            const auto name = entry.path().filename().string();
            EXPECT_TRUE(name == "small.gguf" || (killed && (name.ends_with(".partial") || name == "small.gguf.lock")))
                << name;
        }
        if (content == new_) write_file_atomically(output(), old_);
    }

    /// One trial; whether the program noticed.
    bool trial(int at, const std::string& with) {
        SCOPED_TRACE(fmt::format("{} at call {}", with, at));
        const auto result = run_failing(at, with);
        if (with == "KILL") {
            EXPECT_EQ(result.signal, SIGKILL);
        } else if (result.code != 0) {
            EXPECT_EQ(result.code, 1) << result.errors;
            EXPECT_TRUE(result.errors.starts_with("cerebellum: ")) << result.errors;
            EXPECT_EQ(std::ranges::count(result.errors, '\n'), 1) << result.errors;
            EXPECT_EQ(read_file(output()), old_);
        }
        expect_sound(with == "KILL");
        return result.code != 0;
    }

    TemporaryFolder work_;
    std::string old_ = "the old content";
    std::string new_;
};

using SafeOutputSlow = SafeOutput;

TEST_F(SafeOutput, survives_a_failure_at_the_beginning_and_at_the_end) {
    const int calls = learn();
    ASSERT_GT(calls, 100);
    for (const auto* with : {"EIO", "ENOSPC", "INT", "KILL"})
        for (const int at : {1, calls / 2, calls}) trial(at, with);
    // The next one that works takes away what was left behind.
    EXPECT_EQ(run({}).code, 0);
    EXPECT_EQ(std::distance(fs::directory_iterator(work_ / "out"), {}), 1);
    EXPECT_EQ(read_file(output()), new_);
}

TEST_F(SafeOutput, names_what_failed) {
    const int calls = learn();
    const auto full = run_failing(calls / 2 + 1, "ENOSPC");
    EXPECT_THAT(full.errors, ::testing::AnyOf(HasSubstr("No space left on device"), HasSubstr("cannot read")));
}

TEST_F(SafeOutputSlow, survives_failures_at_two_hundred_and_forty_random_points) {
    const int calls = learn();
    std::mt19937 random(11);
    int noticed = 0;
    for (int i = 0; i < 48; ++i)
        for (const auto* with : {"EIO", "ENOSPC", "KILL", "INT", "TERM"})
            noticed += trial(static_cast<int>(random() % static_cast<unsigned>(calls)) + 1, with);
    // A signal in front of the last calls comes too late to stop anything.
    EXPECT_GT(noticed, 200);
}

TEST_F(SafeOutputSlow, survives_being_killed_at_sixty_random_times) {
    const auto started = std::chrono::steady_clock::now();
    learn();
    const auto whole = std::chrono::steady_clock::now() - started;
    std::mt19937 random(12);
    for (int i = 0; i < 60; ++i) {
        Program program(command({}), work_.path());
        std::this_thread::sleep_for(whole * (random() % 1000) / 1000);
        program.send(SIGKILL);
        program.wait();
        expect_sound(true);
    }
}

}  // namespace
}  // namespace cerebellum
