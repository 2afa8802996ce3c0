#include "cerebellum/core/spill_file.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "cerebellum/core/error.h"

namespace cerebellum {

SpillFile::SpillFile(const std::filesystem::path& folder)
    : folder_(folder.empty() ? std::filesystem::temp_directory_path() : folder) {
    auto name = (folder_ / "cerebellum-XXXXXX").string();
    descriptor_ = mkstemp(name.data());
    if (descriptor_ < 0) fail("cannot be made");
    unlink(name.c_str());
}

SpillFile::~SpillFile() {
    close(descriptor_);
}

void SpillFile::write(std::span<const std::byte> bytes, std::uint64_t offset) const {
    while (!bytes.empty()) {
        const auto written = pwrite(descriptor_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) fail("cannot be written");
        bytes = bytes.subspan(static_cast<std::size_t>(written));
        offset += static_cast<std::uint64_t>(written);
    }
}

void SpillFile::read(std::span<std::byte> bytes, std::uint64_t offset) const {
    while (!bytes.empty()) {
        const auto got = pread(descriptor_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) fail("cannot be read");
        bytes = bytes.subspan(static_cast<std::size_t>(got));
        offset += static_cast<std::uint64_t>(got);
    }
}

void SpillFile::fail(std::string_view what) const {
    throw Error(
        fmt::format("the scratch file in {} {}: {}; free space there, name another folder with --scratch, "
                    "or raise --memory, and run the same command again to go on",
                    folder_.string(), what, std::strerror(errno)));
}

}  // namespace cerebellum
