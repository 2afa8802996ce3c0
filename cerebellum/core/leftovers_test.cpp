#include "cerebellum/core/leftovers.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "cerebellum/core/file.h"
#include "cerebellum/core/temporary_name.h"

namespace cerebellum {
namespace {

namespace fs = std::filesystem;

class RemoveLeftovers : public ::testing::Test {
  protected:
    RemoveLeftovers() {
        std::string name = (fs::temp_directory_path() / "cerebellum-leftovers-XXXXXX").string();
        work_ = ::mkdtemp(name.data());
    }
    ~RemoveLeftovers() override { fs::remove_all(work_); }

    fs::path work_;
};

TEST_F(RemoveLeftovers, are_taken_away_and_what_was_kept_stays) {
    const auto file = work_ / "file", folder = work_ / "folder", kept = work_ / "kept", moved = work_ / "moved";
    fs::create_directory(folder);
    for (const auto& path : {file, folder / "inside", kept, moved}) std::ofstream(path) << "x";
    const Leftover first(file), second(folder);
    {
        const Leftover gone(kept);
        remember_leftover(moved);
        forget_leftover(moved);
    }
    const pid_t child = fork();
    if (child == 0) {
        setpgid(0, 0);
        pause();
        _exit(0);
    }
    setpgid(child, child);
    const Leftover process(child);
    remove_leftovers();
    EXPECT_FALSE(fs::exists(file));
    EXPECT_FALSE(fs::exists(folder));
    EXPECT_TRUE(fs::exists(kept));
    EXPECT_TRUE(fs::exists(moved));
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

TEST_F(RemoveLeftovers, include_every_file_that_has_no_name_yet) {
    AtomicFile open(work_ / "open");
    open.write("x", 1);
    AtomicFile done(work_ / "done");
    done.commit();
    const ScratchFile scratch(temporary_name(work_ / "scratch"));
    std::ofstream(scratch.path()) << "x";
    remove_leftovers();
    EXPECT_EQ(std::distance(fs::directory_iterator(work_), {}), 1);
    EXPECT_TRUE(fs::exists(work_ / "done"));
}

}  // namespace
}  // namespace cerebellum
