#include "cerebellum/core/output_guard.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <map>
#include <string>
#include <system_error>

#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"

namespace cerebellum {

namespace fs = std::filesystem;

namespace {

/// The same for all names of a file.
std::string identity_of(const fs::path& path) {
    struct stat info {};
    if (::stat(path.c_str(), &info) == 0) return fmt::format("{}:{}", info.st_dev, info.st_ino);
    std::error_code code;
    const auto whole = fs::absolute(path, code).lexically_normal();
    auto folder = fs::weakly_canonical(whole.parent_path(), code);
    return ((code ? whole.parent_path() : folder) / whole.filename()).string();
}

}  // namespace

OutputGuard& OutputGuard::reads(const std::string& role, const fs::path& path) {
    if (!path.empty()) files_.push_back({Kind::input, role, path});
    return *this;
}

OutputGuard& OutputGuard::updates(const std::string& role, const fs::path& path) {
    if (!path.empty()) files_.push_back({Kind::updated, role, path});
    return *this;
}

OutputGuard& OutputGuard::writes(const std::string& role, const fs::path& path) {
    if (!path.empty()) files_.push_back({Kind::output, role, path});
    return *this;
}

void OutputGuard::check_apart() const {
    std::map<std::string, const File*> inputs, written;
    for (const auto& file : files_)
        if (file.kind == Kind::input) inputs.emplace(identity_of(file.path), &file);
    for (const auto kind : {Kind::updated, Kind::output})
        for (const auto& file : files_) {
            if (file.kind != kind) continue;
            const auto identity = identity_of(file.path);
            const auto refuse = [&](const File& other) {
                throw Error(fmt::format("{} ({}) would replace {} ({}); give it another name", file.role,
                                        file.path.string(), other.role, other.path.string()));
            };
            if (const auto input = inputs.find(identity); input != inputs.end()) refuse(*input->second);
            if (const auto [other, is_new] = written.emplace(identity, &file); !is_new) refuse(*other->second);
        }
}

void OutputGuard::check_free(bool overwrite) const {
    for (const auto& file : files_) {
        if (file.kind != Kind::output) continue;
        std::error_code code;
        const auto status = fs::status(file.path, code);
        if (fs::exists(status) && !fs::is_regular_file(status) && !fs::is_directory(status))
            throw Error(fmt::format("cannot write {}: it is no regular file; choose another name", file.path.string()));
        check_output_path(file.path, 0, overwrite);
    }
}

void OutputGuard::check() const {
    check_apart();
    check_free(overwrite_);
}

std::optional<OutputLock> OutputGuard::lock() const {
    check_apart();
    const auto first = std::ranges::find(files_, Kind::output, &File::kind);
    if (first == files_.end()) return std::nullopt;
    OutputLock lock(first->path);
    check_free(overwrite_ || lock.was_left_finishing());
    return lock;
}

}  // namespace cerebellum
