#pragma once

#include <filesystem>
#include <string_view>

namespace cerebellum {

/// Throws Error naming the path where what it begins with (or all of it) is what Git LFS leaves in the place of a large
/// file that was not downloaded. read_file() and the other readers of this program look by themselves.
void check_no_lfs_pointer(const std::filesystem::path& path, std::string_view beginning);

/// The same of a file that others read. One that is no regular file, or not there, is no matter of this.
void check_no_lfs_pointer(const std::filesystem::path& path);

}  // namespace cerebellum
