#pragma once

#include <cstddef>
#include <filesystem>

namespace cerebellum {

/// Files that are mapped into memory. Where somebody shortens one, or its disk fails, the system sends SIGBUS to
/// whoever reads the pages that are gone.

/// `address` and `size_bytes` as mmap got them. More than a few hundred files are not remembered.
void remember_mapping(const void* address, std::size_t size_bytes, const std::filesystem::path& path);
void forget_mapping(const void* address);

/// From here on, SIGBUS in a remembered mapping ends the program with exit code 1 and one line on standard error that
/// names the file. Elsewhere it does what it did before. For programs: a library's user may have a handler of their
/// own.
void explain_lost_pages();

}  // namespace cerebellum
