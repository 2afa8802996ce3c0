#include "cerebellum/core/digest_memory.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <optional>
#include <system_error>
#include <vector>

#include "cerebellum/core/data_folder.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/hash.h"

namespace cerebellum {

namespace fs = std::filesystem;

namespace {

constexpr std::size_t digest_characters = 64;

std::int64_t in_ns(const timespec& time) {
    return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

/// Empty where nothing can be kept: that is no reason not to work.
std::optional<fs::path> path_of(std::string_view kind, std::span<const FileState> files) {
    std::string key(kind);
    for (const auto& file : files)
        key += fmt::format("\n{} {} {} {} {}", file.device, file.inode, file.size_bytes, file.changed_ns,
                           file.entry_changed_ns);
    try {
        return cache_folder() / "digests" / sha256(key);
    } catch (const Error&) {
        return std::nullopt;
    }
}

std::optional<std::string> kept_digest(const fs::path& path) {
    std::ifstream file(path);
    std::string digest;
    const bool whole = static_cast<bool>(std::getline(file, digest)) && digest.size() == digest_characters &&
                       digest.find_first_not_of("0123456789abcdef") == std::string::npos;
    return whole ? std::optional(digest) : std::nullopt;
}

/// Whether a change of now would leave its traces in the state.
bool is_settled(const FileState& file) {
    using namespace std::chrono;
    const auto now = duration_cast<nanoseconds>(system_clock::now().time_since_epoch()).count();
    constexpr std::int64_t coarsest_clock_ns = 2'000'000'000;
    return now - std::max(file.changed_ns, file.entry_changed_ns) > coarsest_clock_ns;
}

}  // namespace

FileState file_state(const struct stat& info) {
    FileState state;
    state.device = static_cast<std::uint64_t>(info.st_dev);
    state.inode = static_cast<std::uint64_t>(info.st_ino);
    state.size_bytes = static_cast<std::uint64_t>(info.st_size);
#ifdef __APPLE__
    state.changed_ns = in_ns(info.st_mtimespec);
    state.entry_changed_ns = in_ns(info.st_ctimespec);
#else
    state.changed_ns = in_ns(info.st_mtim);
    state.entry_changed_ns = in_ns(info.st_ctim);
#endif
    return state;
}

FileState file_state(const fs::path& path) {
    struct stat info {};
    if (::stat(path.c_str(), &info) != 0)
        throw Error(fmt::format("cannot read {}: {}", path.string(), std::strerror(errno)));
    return file_state(info);
}

std::string remembered_digest(std::string_view kind, std::span<const FileState> files,
                              const std::function<std::string()>& compute) {
    const auto path = path_of(kind, files);
    if (path)
        if (auto kept = kept_digest(*path)) return *kept;
    auto digest = compute();
    if (!path || !std::ranges::all_of(files, is_settled)) return digest;
    std::error_code code;
    fs::create_directories(path->parent_path(), code);
    try {
        write_file_atomically(*path, digest + "\n");
    } catch (const Error&) {
        // A cache that cannot be written, or is full, only costs time.
    }
    return digest;
}

std::string content_sha256(std::span<const fs::path> paths, Progress& progress) {
    std::vector<FileState> states;
    double bytes = 0.0;
    for (const auto& path : paths) bytes += static_cast<double>(states.emplace_back(file_state(path)).size_bytes);
    return remembered_digest("sha256", states, [&] {
        LateStage stage(progress, "hashing", bytes);
        const auto name = paths.front().filename().string();
        return sha256_of_files(paths, [&](std::uint64_t done) { stage.advance(static_cast<double>(done), name); });
    });
}

std::string content_sha256(const fs::path& path, Progress& progress) {
    return content_sha256({&path, 1}, progress);
}

}  // namespace cerebellum
