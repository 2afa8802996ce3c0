#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace cerebellum {

/// What Linux says of processes in /proc. A process may end at any moment while it is asked about: what is gone, or
/// fails to be read, is empty and never an error.

/// The whole of one of its files, as "/proc/1/status".
std::string proc_text(const std::filesystem::path& file);

/// The names in one of its folders, in the order in which the system lists them.
std::vector<std::string> proc_names(const std::filesystem::path& folder);

/// All processes of this machine.
std::vector<pid_t> all_processes();

/// A field of a text of /proc/PID/status that counts kB, as "VmRSS", in bytes; 0 where it is not there.
std::uint64_t status_bytes(std::string_view status, std::string_view field);

}  // namespace cerebellum
