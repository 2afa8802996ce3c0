#include "cerebellum/core/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <system_error>
#include <utility>
#include <vector>

#include "cerebellum/core/error.h"
#include "cerebellum/core/leftovers.h"
#include "cerebellum/core/lfs_pointer.h"
#include "cerebellum/core/temporary_name.h"

namespace cerebellum {

namespace fs = std::filesystem;

void check_regular(const fs::path& path) {
    std::error_code code;
    const auto type = fs::status(path, code).type();
    if (type == fs::file_type::directory) throw Error(fmt::format("cannot read {}: it is a directory", path.string()));
    if (type == fs::file_type::not_found || type == fs::file_type::none || type == fs::file_type::regular) return;
    throw Error(fmt::format("cannot read {}: it is a {} and no file; write its contents to a file first", path.string(),
                            type == fs::file_type::fifo ? "pipe" : "device or socket"));
}

std::string read_file(const fs::path& path) {
    check_regular(path);
    std::ifstream stream(path, std::ios::binary);
    if (!stream) throw Error(fmt::format("cannot read {}: {}", path.string(), std::strerror(errno)));
    std::string content;
    // Never by the buffer's own iterators: those throw an exception without a path where a read fails.
    std::vector<char> piece(std::size_t{1} << 16);
    while (stream.read(piece.data(), static_cast<std::streamsize>(piece.size())), stream.gcount() > 0)
        content.append(piece.data(), static_cast<std::size_t>(stream.gcount()));
    if (stream.bad()) throw Error(fmt::format("cannot read {}: {}", path.string(), std::strerror(errno)));
    check_no_lfs_pointer(path, content);
    return content;
}

namespace {

constexpr std::string_view partial = ".partial";

fs::path folder_of(const fs::path& path) {
    return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

/// Whoever is still writing a temporary file holds a lock on it.
void remove_abandoned(const fs::path& path) {
    const std::string stem = path.filename().string() + '.';
    std::error_code code;
    for (const auto& entry : fs::directory_iterator(folder_of(path), code)) {
        const std::string name = entry.path().filename().string();
        if (!name.starts_with(stem) || !name.ends_with(partial)) continue;
        const auto pid = std::string_view(name).substr(stem.size(), name.size() - stem.size() - partial.size());
        if (pid.empty() || pid.find_first_not_of("0123456789") != std::string_view::npos) continue;
        const int descriptor = ::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
        if (descriptor < 0) continue;
        if (::flock(descriptor, LOCK_EX | LOCK_NB) == 0) ::unlink(entry.path().c_str());
        ::close(descriptor);
    }
}

/// Opens and locks; -1 with errno where it cannot be opened. A file system without locks does without.
int open_locked(const fs::path& path) {
    while (true) {
        // Whoever may write to the folder could have laid a link or a pipe of this name.
        const int descriptor =
            ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
        if (descriptor < 0) return -1;
        struct stat info {};
        // Before the lock was there somebody may have taken the file for an abandoned one.
        if (::flock(descriptor, LOCK_EX | LOCK_NB) != 0 || ::fstat(descriptor, &info) != 0 || info.st_nlink > 0)
            return descriptor;
        ::close(descriptor);
    }
}

}  // namespace

fs::path temporary_name(fs::path path) {
    path += fmt::format(".{}{}", ::getpid(), partial);
    remember_leftover(path);
    return path;
}

AtomicFile::AtomicFile(fs::path path) : path_(std::move(path)), temporary_(temporary_name(path_)) {
    remove_abandoned(path_);
    descriptor_ = open_locked(temporary_);
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

void AtomicFile::fail(std::string_view step) const {
    const int reason = errno;
    throw Error(fmt::format("cannot {} {}: {}{}", step, path_.string(), std::strerror(reason),
                            reason == ENOSPC ? "; free some space or choose another folder" : ""));
}

void AtomicFile::reserve(std::uint64_t size) {
    while (::ftruncate(descriptor_, static_cast<off_t>(size)) != 0)
        if (errno != EINTR) fail("write");
#ifdef __linux__
    // Not every file system can; then a full disk shows later.
    while (size > 0 && ::fallocate(descriptor_, 0, 0, static_cast<off_t>(size)) != 0) {
        if (errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL) break;
        if (errno != EINTR) fail("write");
    }
#endif
}

void AtomicFile::write_at(std::uint64_t offset, const void* data, std::uint64_t size) {
    const char* bytes = static_cast<const char*>(data);
    [[maybe_unused]] const std::uint64_t begin = offset, all = size;
    while (size > 0) {
        const auto written = ::pwrite(descriptor_, bytes, size, static_cast<off_t>(offset));
        if (written < 0) {
            if (errno == EINTR) continue;
            fail("write");
        }
        bytes += written;
        offset += static_cast<std::uint64_t>(written);
        size -= static_cast<std::uint64_t>(written);
    }
#ifdef __linux__
    // So that fsync finds little left to do at the end. Many small requests would only slow the disk down.
    constexpr std::uint64_t worth_while = 256 * 1024;
    if (all >= worth_while)
        ::sync_file_range(descriptor_, static_cast<off_t>(begin), static_cast<off_t>(all), SYNC_FILE_RANGE_WRITE);
#endif
}

void AtomicFile::write(const void* data, std::uint64_t size) {
    const char* bytes = static_cast<const char*>(data);
    while (size > 0) {
        const auto written = ::write(descriptor_, bytes, size);
        if (written < 0) {
            if (errno == EINTR) continue;
            fail("write");
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

void AtomicFile::make_durable() {
    if (durable_) return;
    while (::fsync(descriptor_) != 0)
        if (errno != EINTR) fail("write");
    durable_ = true;
}

void AtomicFile::commit() {
    make_durable();
    // Renamed while it is locked, so that nobody takes it for an abandoned one.
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail("rename the finished file to");
    ::close(std::exchange(descriptor_, -1));
    // The name itself is durable only once its folder is.
    if (const int handle = ::open(folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); handle >= 0) {
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
    const fs::path folder = folder_of(path);
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
