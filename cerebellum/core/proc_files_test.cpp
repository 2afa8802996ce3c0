#include "cerebellum/core/proc_files.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <thread>

namespace cerebellum {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(ProcFiles, of_this_process_are_read) {
    EXPECT_THAT(proc_text("/proc/self/status"), HasSubstr(fmt::format("\nPid:\t{}\n", ::getpid())));
    EXPECT_THAT(proc_names("/proc/self/task"), Contains(std::to_string(::getpid())));
    EXPECT_THAT(all_processes(), Contains(::getpid()));
    const auto resident = status_bytes(proc_text("/proc/self/status"), "VmRSS");
    EXPECT_GT(resident, 1u << 20);
    EXPECT_EQ(resident % 1024, 0u);
}

TEST(ProcFiles, that_cannot_be_read_are_empty) {
    EXPECT_EQ(proc_text("/proc/self/mem"), "");  // opens, and its first read fails
    EXPECT_EQ(proc_text("/proc/self/nothing"), "");
    EXPECT_THAT(proc_names("/proc/self/nothing"), IsEmpty());
    EXPECT_THAT(proc_names("/proc/self/status"), IsEmpty());
    EXPECT_EQ(status_bytes("Name:\tVmRSS:\nVmRSSx:\t5 kB\n", "VmRSS"), 0u);
    EXPECT_EQ(status_bytes("Name:\ta\nVmRSS:\t   5 kB\n", "VmRSS"), 5120u);
    EXPECT_EQ(status_bytes("Name:\ta\nVmRSS:", "VmRSS"), 0u);
}

/// Reads all there is of processes that come and go, for a while.
TEST(ProcFiles, of_processes_that_end_meanwhile_are_no_error) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(500);
    std::jthread others([&] {
        while (std::chrono::steady_clock::now() < end) {
            const pid_t child = ::fork();
            if (child == 0) ::_exit(0);
            ::waitpid(child, nullptr, 0);
        }
    });
    std::size_t n_read = 0;
    while (std::chrono::steady_clock::now() < end)
        for (const pid_t process : all_processes())
            for (const auto& thread : proc_names(fmt::format("/proc/{}/task", process)))
                n_read += proc_text(fmt::format("/proc/{}/task/{}/status", process, thread)).size();
    EXPECT_GT(n_read, 0u);
}

}  // namespace
}  // namespace cerebellum
