#include "cerebellum/core/lost_pages.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "cerebellum/core/file.h"

namespace cerebellum {
namespace {

namespace fs = std::filesystem;

/// Reads the last page of a file that is cut behind our back, mapped by nobody of ours.
void read_what_is_gone(const fs::path& path) {
    constexpr std::size_t size = 1 << 16;
    explain_lost_pages();
    write_file_atomically(path, std::string(size, 'x'));
    const int descriptor = ::open(path.c_str(), O_RDONLY);
    const auto* mapped = static_cast<const volatile char*>(::mmap(nullptr, size, PROT_READ, MAP_SHARED, descriptor, 0));
    fs::resize_file(path, 4096);
    std::exit(mapped[size - 1] == 'x' ? 3 : 4);
}

TEST(LostPagesDeathTest, the_file_is_named_whoever_mapped_it) {
    const auto path = fs::temp_directory_path() / ("cerebellum-lost-" + std::to_string(::getpid()));
    EXPECT_EXIT(read_what_is_gone(path), ::testing::ExitedWithCode(1), path.filename().string() + " was cut short");
    fs::remove(path);
}

TEST(LostPagesDeathTest, what_is_no_file_s_ends_as_before) {
    const auto raise_elsewhere = [] {
        ::signal(SIGBUS, SIG_DFL);  // a sanitizer has a handler of its own
        explain_lost_pages();
        ::raise(SIGBUS);  // no address: as from somebody else
        ::raise(SIGBUS);
    };
    EXPECT_EXIT(raise_elsewhere(), ::testing::KilledBySignal(SIGBUS), "");
}

}  // namespace
}  // namespace cerebellum
