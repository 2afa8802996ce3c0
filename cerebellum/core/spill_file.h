#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>

namespace cerebellum {

/// A scratch file without a name, which goes with the process however that ends. The caller says what lies where.
/// Different threads may write and read different parts at a time. Every function throws Error where the file cannot be
/// made, written or read: what, where, and what to do.
class SpillFile {
  public:
    /// In this folder; empty: the system's temporary one.
    explicit SpillFile(const std::filesystem::path& folder);
    ~SpillFile();
    SpillFile(const SpillFile&) = delete;
    SpillFile& operator=(const SpillFile&) = delete;

    void write(std::span<const std::byte> bytes, std::uint64_t offset) const;
    void read(std::span<std::byte> bytes, std::uint64_t offset) const;

  private:
    [[noreturn]] void fail(std::string_view what) const;

    std::filesystem::path folder_;
    int descriptor_ = -1;
};

}  // namespace cerebellum
