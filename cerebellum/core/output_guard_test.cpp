#include "cerebellum/core/output_guard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"

namespace cerebellum {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

namespace fs = std::filesystem;

std::string refusal(const OutputGuard& guard) {
    try {
        guard.check();
        return "";
    } catch (const Error& error) {
        return error.what();
    }
}

class Guard : public ::testing::Test {
  protected:
    Guard() {
        std::string pattern = (fs::temp_directory_path() / "cerebellum-guard-XXXXXX").string();
        folder_ = ::mkdtemp(pattern.data());
    }
    ~Guard() override { fs::remove_all(folder_); }

    fs::path make(const std::string& name) const {
        write_file_atomically(folder_ / name, name);
        return folder_ / name;
    }
    fs::path folder_;
};

TEST_F(Guard, an_output_is_no_input_whatever_it_is_called) {
    const auto input = make("model.gguf");
    fs::create_symlink("model.gguf", folder_ / "link.gguf");
    fs::create_hard_link(input, folder_ / "hard.gguf");
    fs::create_directory(folder_ / "sub");
    fs::create_directory_symlink(folder_, folder_ / "sub" / "up");
    for (const auto& name : {input, folder_ / "link.gguf", folder_ / "hard.gguf", folder_ / "sub/../model.gguf",
                             folder_ / "sub/up/model.gguf"}) {
        OutputGuard guard(true);
        guard.reads("the model", input).writes("the report", name);
        EXPECT_THAT(refusal(guard), AllOf(HasSubstr("the model"), HasSubstr("the report"))) << name;
    }
    OutputGuard other(true);
    other.reads("the model", input).writes("the report", folder_ / "other.gguf");
    EXPECT_EQ(refusal(other), "");
}

TEST_F(Guard, an_output_is_no_other_output_though_neither_is_there_yet) {
    fs::create_directory(folder_ / "sub");
    OutputGuard guard(true);
    guard.writes("the output", folder_ / "a").writes("the report", folder_ / "sub/../a");
    EXPECT_THAT(refusal(guard), AllOf(HasSubstr("the output"), HasSubstr("the report")));
    OutputGuard journal(true);
    journal.writes("the output", folder_ / "a").updates("the journal", folder_ / "a");
    EXPECT_THAT(refusal(journal), HasSubstr("the journal"));
}

TEST_F(Guard, what_is_there_is_replaced_only_where_it_is_said) {
    const auto there = make("there");
    OutputGuard guard(false), forced(true), kept(false);
    EXPECT_THAT(refusal(guard.writes("the output", folder_ / "new").writes("the recipe", there)),
                AllOf(HasSubstr(there.string()), HasSubstr("--force")));
    EXPECT_EQ(refusal(forced.writes("the recipe", there)), "");
    EXPECT_EQ(refusal(kept.updates("the journal", there)), "");
    OutputGuard device(true);
    EXPECT_THAT(refusal(device.writes("the output", "/dev/null")), HasSubstr("no regular file"));
}

TEST_F(Guard, nothing_given_is_nothing) {
    OutputGuard guard(false);
    guard.reads("the model", "").writes("the report", "").updates("the journal", "");
    EXPECT_EQ(refusal(guard), "");
    EXPECT_FALSE(guard.lock());
}

TEST_F(Guard, an_output_is_locked_while_it_is_written) {
    OutputGuard guard(false);
    guard.writes("the output", folder_ / "out");
    {
        const auto lock = guard.lock();
        ASSERT_TRUE(lock);
        try {
            guard.lock();
            FAIL() << "locked twice";
        } catch (const Error& error) {
            EXPECT_THAT(error.what(), AllOf(HasSubstr("another run"), HasSubstr((folder_ / "out").string())));
        }
    }
    EXPECT_TRUE(fs::is_empty(folder_));
    EXPECT_TRUE(guard.lock());
}

TEST_F(Guard, a_killed_process_leaves_no_lock_and_its_half_named_outputs_are_replaced) {
    const auto side = folder_ / "out.recipe.json";
    const pid_t child = ::fork();
    if (child == 0) {
        OutputLock lock(folder_ / "out");
        lock.finishing();
        write_file_atomically(side, "{}");
        ::raise(SIGKILL);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));
    OutputGuard guard(false);
    guard.writes("the output", folder_ / "out").writes("the recipe", side);
    EXPECT_THAT(refusal(guard), HasSubstr("--force"));  // without the lock nobody knows whose it is
    EXPECT_TRUE(guard.lock());
    EXPECT_THROW(guard.lock(), Error);  // the lock of the run that ended well says nothing more
}

TEST_F(Guard, somebody_elses_link_is_not_followed_for_a_lock) {
    const auto precious = make("precious");
    fs::create_symlink(precious, folder_ / "out.lock");
    EXPECT_THROW(OutputLock(folder_ / "out"), Error);
    EXPECT_EQ(read_file(precious), "precious");
}

}  // namespace
}  // namespace cerebellum
