#pragma once

#include <filesystem>
#include <string>

namespace cerebellum {

/// The content of a file, unpacked where it is gzip-compressed. Throws Error naming the path where it cannot be read,
/// or its compressed data is damaged or cut short.
std::string read_unpacked(const std::filesystem::path& path);

}  // namespace cerebellum
