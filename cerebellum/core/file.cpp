#include "cerebellum/core/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <system_error>
#include <utility>

#include "cerebellum/core/error.h"

namespace cerebellum {

namespace fs = std::filesystem;

std::string read_file(const fs::path& path) {
    std::error_code code;
    if (fs::is_directory(path, code)) throw Error(fmt::format("cannot read {}: it is a directory", path.string()));
    std::ifstream stream(path, std::ios::binary);
    if (!stream) throw Error(fmt::format("cannot read {}: {}", path.string(), std::strerror(errno)));
    std::string content((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
    if (stream.bad()) throw Error(fmt::format("cannot read {}: {}", path.string(), std::strerror(errno)));
    return content;
}

AtomicFile::AtomicFile(fs::path path) : path_(std::move(path)) {
    temporary_ = path_;
    temporary_ += fmt::format(".{}.partial", ::getpid());
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (descriptor_ < 0)
        throw Error(fmt::format("cannot write {}: {}; choose another folder or mend its permissions", path_.string(),
                                std::strerror(errno)));
}

AtomicFile::~AtomicFile() {
    if (descriptor_ >= 0) {
        ::close(descriptor_);
        ::unlink(temporary_.c_str());
    }
}

void AtomicFile::write(const void* data, std::uint64_t size) {
    const char* bytes = static_cast<const char*>(data);
    while (size > 0) {
        const auto written = ::write(descriptor_, bytes, size);
        if (written < 0) {
            if (errno == EINTR) continue;
            throw Error(fmt::format("cannot write {}: {}", path_.string(), std::strerror(errno)));
        }
        bytes += written;
        size -= static_cast<std::uint64_t>(written);
        position_ += static_cast<std::uint64_t>(written);
    }
}

void AtomicFile::write_zeros(std::uint64_t size) {
    static constexpr std::array<char, 4096> zeros{};
    while (size > 0) {
        const auto chunk = std::min<std::uint64_t>(size, zeros.size());
        write(zeros.data(), chunk);
        size -= chunk;
    }
}

void AtomicFile::commit() {
    const auto fail = [&](std::string_view step) {
        throw Error(fmt::format("cannot {} {}: {}", step, path_.string(), std::strerror(errno)));
    };
    if (::fsync(descriptor_) != 0) fail("write");
    if (::close(std::exchange(descriptor_, -1)) != 0) {
        ::unlink(temporary_.c_str());
        fail("write");
    }
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) {
        const int reason = errno;
        ::unlink(temporary_.c_str());
        errno = reason;
        fail("rename the finished file to");
    }
    // The name itself is durable only once its folder is.
    const fs::path folder = path_.has_parent_path() ? path_.parent_path() : fs::path(".");
    if (const int handle = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); handle >= 0) {
        ::fsync(handle);
        ::close(handle);
    }
}

ScratchFile::~ScratchFile() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove(path_, ignored);
}

void write_file_atomically(const fs::path& path, std::string_view content) {
    AtomicFile file(path);
    file.write(content.data(), content.size());
    file.commit();
}

void check_output_path(const fs::path& path, std::uint64_t size, bool overwrite) {
    std::error_code code;
    if (fs::is_directory(path, code)) throw Error(fmt::format("cannot write {}: it is a directory", path.string()));
    if (!overwrite && fs::exists(path, code))
        throw Error(
            fmt::format("{} exists already; pass --force to replace it, or choose another name", path.string()));
    const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
    if (!fs::is_directory(folder, code))
        throw Error(
            fmt::format("cannot write {}: there is no folder {}; create it first", path.string(), folder.string()));
    { AtomicFile probe(path); }
    const auto space = fs::space(folder, code);
    if (!code && space.available < size)
        throw Error(fmt::format(
            "cannot write {}: it needs {} bytes and {} has {} free; free some space or choose another folder",
            path.string(), size, folder.string(), space.available));
}

}  // namespace cerebellum
