#include "cerebellum/core/machine.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "cerebellum/core/file.h"

namespace cerebellum {
namespace {

namespace fs = std::filesystem;

/// A made-up system's files.
class MadeUpMachine : public ::testing::Test {
  protected:
    MadeUpMachine() {
        std::string pattern = (fs::temp_directory_path() / "cerebellum-machine-XXXXXX").string();
        root_ = ::mkdtemp(pattern.data());
    }
    ~MadeUpMachine() override { fs::remove_all(root_); }

    void file(const std::string& name, const std::string& content) const {
        fs::create_directories((root_ / name).parent_path());
        write_file_atomically(root_ / name, content);
    }

    fs::path root_;
};

TEST_F(MadeUpMachine, reads_processor_and_memory) {
    file("proc/cpuinfo",
         "processor\t: 0\nmodel name\t: Some Processor 9000\nflags\t\t: fpu sse avx2 fma\n\n"
         "processor\t: 1\nmodel name\t: Some Processor 9000\nflags\t\t: fpu\n");
    file("proc/meminfo", "MemTotal:       16000000 kB\nMemFree:          100 kB\nMemAvailable:    8000000 kB\n");
    file("proc/loadavg", "1.25 0.50 0.10 1/200 1234\n");
    const auto machine = this_machine(root_);
    EXPECT_EQ(machine.processor, "Some Processor 9000");
    EXPECT_TRUE(machine.processor_flags.contains("avx2"));
    EXPECT_FALSE(machine.processor_flags.contains("avx512f"));
    EXPECT_EQ(machine.memory_bytes, 16'000'000ULL * 1024);
    EXPECT_EQ(machine.usable_bytes(), 8'000'000ULL * 1024);
    EXPECT_DOUBLE_EQ(machine.load, 1.25);
    EXPECT_EQ(machine.limit_bytes, 0U);
    EXPECT_EQ(machine.graphics_hardware, "");
}

TEST_F(MadeUpMachine, the_least_limit_up_the_control_groups_counts) {
    file("proc/meminfo", "MemTotal: 16000000 kB\nMemAvailable: 8000000 kB\n");
    file("proc/self/cgroup", "0::/user.slice/job\n");
    file("sys/fs/cgroup/user.slice/job/memory.max", "max\n");
    file("sys/fs/cgroup/user.slice/memory.max", "1000000000\n");
    EXPECT_EQ(this_machine(root_).limit_bytes, 1'000'000'000U);
    EXPECT_EQ(this_machine(root_).usable_bytes(), 1'000'000'000U);
    file("sys/fs/cgroup/user.slice/job/memory.max", "400000000\n");
    EXPECT_EQ(this_machine(root_).limit_bytes, 400'000'000U);
}

TEST_F(MadeUpMachine, limits_of_the_first_version_of_control_groups) {
    file("proc/self/cgroup", "7:cpu:/a\n5:memory:/b\n");
    file("sys/fs/cgroup/memory/b/memory.limit_in_bytes", "9223372036854771712\n");
    EXPECT_EQ(this_machine(root_).limit_bytes, 0U);
    file("sys/fs/cgroup/memory/b/memory.limit_in_bytes", "300000000\n");
    EXPECT_EQ(this_machine(root_).limit_bytes, 300'000'000U);
}

TEST_F(MadeUpMachine, damaged_files_are_no_answer) {
    file("proc/cpuinfo", "model name");
    file("proc/meminfo", "MemTotal: many kB\nMemAvailable\n");
    file("proc/loadavg", "");
    file("proc/self/cgroup", "nonsense\n:\n");
    const auto machine = this_machine(root_);
    EXPECT_EQ(machine.processor, "");
    EXPECT_EQ(machine.memory_bytes, 0U);
    EXPECT_EQ(machine.limit_bytes, 0U);
}

TEST_F(MadeUpMachine, sees_drivers_of_graphics_cards) {
    file("proc/driver/nvidia/version", "");
    EXPECT_EQ(this_machine(root_).graphics_hardware, "NVIDIA");
}

TEST_F(MadeUpMachine, disk_of_a_folder_that_is_not_there) {
    EXPECT_EQ(free_disk_bytes(root_ / "nowhere"), 0U);
    EXPECT_GT(free_disk_bytes(root_), 0U);
}

TEST(Machine, this_one_has_memory) {
    EXPECT_GT(this_machine().memory_bytes, 0U);
    EXPECT_GE(this_machine().logical_cores, this_machine().physical_cores);
}

}  // namespace
}  // namespace cerebellum
