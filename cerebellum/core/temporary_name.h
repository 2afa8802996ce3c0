#pragma once

#include <filesystem>

namespace cerebellum {

/// The name under which this process's AtomicFile writes what is to become `path`. Another program may write the
/// content there in its stead; it may empty the file, but not replace it.
std::filesystem::path temporary_name(std::filesystem::path path);

}  // namespace cerebellum
