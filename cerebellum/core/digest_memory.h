#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "cerebellum/core/progress.h"

namespace cerebellum {

/// What a file's content cannot change without: where it lies (device, inode), its size, and when it and its entry were
/// last changed, in nanoseconds. A program can give a file an old time of change, but not an old time of its entry's.
struct FileState {
    std::uint64_t device = 0;
    std::uint64_t inode = 0;
    std::uint64_t size_bytes = 0;
    std::int64_t changed_ns = 0;
    std::int64_t entry_changed_ns = 0;

    bool operator==(const FileState&) const = default;
};

FileState file_state(const struct stat& info);
/// Throws Error naming the file where it is not there.
FileState file_state(const std::filesystem::path& path);

/// The digest that `compute` makes of these files, or the one that an earlier run has made of them in the same states.
/// `kind` names what is computed; another way of computing has another name. Kept in cache_folder()/digests, where
/// there is such a folder; a digest of a file that was changed within the last seconds is not kept, as its time would
/// not show another change.
std::string remembered_digest(std::string_view kind, std::span<const FileState> files,
                              const std::function<std::string()>& compute);

/// SHA-256 (hexadecimal) of files one behind the other, remembered. Shown as a stage of its own where it takes long, so
/// that it is called between stages. Throws Error naming the file where one cannot be read, and Interrupted.
std::string content_sha256(std::span<const std::filesystem::path> paths, Progress& progress);
std::string content_sha256(const std::filesystem::path& path, Progress& progress);

}  // namespace cerebellum
