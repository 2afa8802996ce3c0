#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

namespace cerebellum {

/// Lets the system take back the memory of the pages that lie wholly inside `bytes`, if they are pages of a mapped
/// file; anything else is left alone. They are read again from the file when they are touched again.
void drop_pages(std::span<const std::byte> bytes);

/// The same for everything that this process has mapped of a file.
void drop_pages(const std::filesystem::path& file);

}  // namespace cerebellum
