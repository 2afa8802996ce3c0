#include "cerebellum/core/digest_memory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <thread>
#include <vector>

#include "cerebellum/core/error.h"
#include "cerebellum/core/hash.h"

namespace cerebellum {
namespace {

namespace fs = std::filesystem;

/// A cache of its own, and one file that was last changed long ago as far as its own time says.
class DigestMemory : public testing::Test {
  protected:
    void SetUp() override {
        folder_ = fs::temp_directory_path() / ("cerebellum-digests-" + std::to_string(::getpid()));
        fs::create_directories(folder_);
        const char* before = std::getenv("CEREBELLUM_CACHE");
        if (before != nullptr) before_ = before;
        ::setenv("CEREBELLUM_CACHE", (folder_ / "cache").c_str(), 1);
    }
    void TearDown() override {
        if (before_.empty())
            ::unsetenv("CEREBELLUM_CACHE");
        else
            ::setenv("CEREBELLUM_CACHE", before_.c_str(), 1);
        fs::remove_all(folder_);
    }
    /// A state as it is of a file that was left alone for a while.
    static FileState settled(std::uint64_t inode) { return {1, inode, 10, 1'000, 2'000}; }
    std::string digest(std::span<const FileState> states, std::string_view kind = "kind") {
        return remembered_digest(kind, states, [&] {
            ++computed_;
            return sha256(std::to_string(computed_));
        });
    }

    fs::path folder_;
    std::string before_;
    int computed_ = 0;
};

TEST_F(DigestMemory, computes_once_for_the_same_state) {
    const FileState states[] = {settled(1), settled(2)};
    const auto first = digest(states);
    EXPECT_EQ(digest(states), first);
    EXPECT_EQ(computed_, 1);
}

TEST_F(DigestMemory, every_part_of_the_state_and_the_kind_count) {
    const auto first = settled(1);
    std::vector<FileState> others(5, first);
    others[0].device++, others[1].inode++, others[2].size_bytes++, others[3].changed_ns++;
    others[4].entry_changed_ns++;
    const auto known = digest(std::span(&first, 1));
    for (const auto& other : others) EXPECT_NE(digest(std::span(&other, 1)), known);
    EXPECT_NE(digest(std::span(&first, 1), "other"), known);
}

TEST_F(DigestMemory, a_file_of_this_moment_is_not_remembered) {
    const auto path = folder_ / "file";
    std::ofstream(path) << "content";
    const FileState states[] = {file_state(path)};
    const auto first = digest(states);
    EXPECT_NE(digest(states), first);
    EXPECT_EQ(computed_, 2);
}

TEST_F(DigestMemory, what_was_damaged_in_the_cache_is_made_again) {
    const FileState states[] = {settled(1)};
    const auto first = digest(states);
    for (const auto& entry : fs::directory_iterator(folder_ / "cache" / "digests")) std::ofstream(entry.path()) << "x";
    EXPECT_NE(digest(states), first);
}

TEST_F(DigestMemory, a_file_edited_under_its_old_time_has_another_state) {
    const auto path = folder_ / "file";
    std::ofstream(path) << "content";
    const auto before = file_state(path);
    std::this_thread::sleep_for(std::chrono::milliseconds(30));  // the system's clock for files is a coarse one
    std::ofstream(path) << "CONTENT";
    struct stat info {};
    ASSERT_EQ(::stat(path.c_str(), &info), 0);
    const timespec times[] = {
        info.st_atim,
        {static_cast<time_t>(before.changed_ns / 1'000'000'000), static_cast<long>(before.changed_ns % 1'000'000'000)}};
    ASSERT_EQ(::utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
    const auto after = file_state(path);
    EXPECT_EQ(after.changed_ns, before.changed_ns);
    EXPECT_NE(after, before);
}

TEST_F(DigestMemory, content_is_what_is_hashed) {
    NoProgress progress;
    const auto path = folder_ / "file";
    std::ofstream(path) << "content";
    EXPECT_EQ(content_sha256(path, progress), sha256("content"));
    EXPECT_THROW(content_sha256(folder_ / "none", progress), Error);
}

}  // namespace
}  // namespace cerebellum
