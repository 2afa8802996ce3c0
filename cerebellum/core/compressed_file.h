#pragma once

#include <cstddef>
#include <filesystem>
#include <string>

namespace cerebellum {

/// More text than anything here has a use for.
inline constexpr std::size_t most_text_bytes = std::size_t{1} << 30;

/// The content of a file of text, unpacked where it is gzip-compressed, without the byte order mark that some editors
/// put in front of UTF-8. Throws Error naming the path where it cannot be read,
/// is no regular file, holds more than `most_bytes` (a small file may unpack to more than there is memory), or its
/// compressed data is damaged or cut short.
std::string read_unpacked(const std::filesystem::path& path, std::size_t most_bytes = most_text_bytes);

/// The same of a text in UTF-8, as tokenizers want it: some throw on other bytes, some take them for words. Throws
/// Error also where it is anything else, naming the first byte that does not fit.
std::string read_text(const std::filesystem::path& path);

}  // namespace cerebellum
