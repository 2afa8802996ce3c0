#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "cerebellum/core/output_lock.h"

namespace cerebellum {

/// What a command reads and what it writes, and the rule for both: no output is an input or another output of the run,
/// whatever it is called (device and inode, links followed; a file that is not there yet is its folder and its name),
/// and what is there already is replaced only where the user has said so. Empty paths are passed over. `role` names a
/// file in the message: "the model", "the recipe".
class OutputGuard {
  public:
    /// `overwrite`: outputs may be replaced (--force). Inputs never are.
    explicit OutputGuard(bool overwrite) : overwrite_(overwrite) {}

    OutputGuard& reads(const std::string& role, const std::filesystem::path& path);
    /// A file that is read and added to, such as a journal, or one that the command replaces in any case.
    OutputGuard& updates(const std::string& role, const std::filesystem::path& path);
    OutputGuard& writes(const std::string& role, const std::filesystem::path& path);

    /// Throws Error naming both where an output is an input or another output; where one exists and may not be
    /// replaced, is no regular file, or cannot be made in its folder.
    void check() const;
    /// The first half of it: looks only at which files are the same.
    void check_apart() const;
    /// As check(), and keeps other processes from writing the first of the outputs, if there is any. Where an earlier
    /// run was ended while its outputs got their names, these may be replaced.
    std::optional<OutputLock> lock() const;

  private:
    enum class Kind { input, updated, output };
    struct File {
        Kind kind;
        std::string role;
        std::filesystem::path path;
    };

    void check_free(bool overwrite) const;

    bool overwrite_;
    std::vector<File> files_;
};

}  // namespace cerebellum
