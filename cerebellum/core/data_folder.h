#pragma once

#include <filesystem>
#include <string>

namespace cerebellum {

/// A folder that belongs to this program's installation, such as "converter". Looked for in $CEREBELLUM_DATA, then
/// below share/cerebellum beside the executable or one folder higher, then where the library was installed. Throws
/// Error saying where it is not.
std::filesystem::path data_folder(const std::string& name);

/// Where this user's programs keep what can be made again: $CEREBELLUM_CACHE, or cerebellum/ in $XDG_CACHE_HOME or
/// ~/.cache. Throws Error where none of these is set.
std::filesystem::path cache_folder();

}  // namespace cerebellum
