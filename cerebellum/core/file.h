#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>

namespace cerebellum {

/// Throws Error naming the path where it is something that cannot be read to an end that is known: a directory, a pipe,
/// a device. Nothing of it is opened: that alone may wait for ever. A path that is not there is no matter of this.
void check_regular(const std::filesystem::path& path);

/// The whole of a regular file. Throws Error naming the path and the reason.
std::string read_file(const std::filesystem::path& path);

/// Writes a file so that its final name only ever shows the old or the complete new content: temporary name in the same
/// folder, fsync, rename. Throws Error naming the path; the temporary file is removed. What a killed process has left
/// behind is removed by the next one that writes a file of that name.
class AtomicFile {
  public:
    /// Opens the temporary file; fails early where the folder is missing or not writable.
    explicit AtomicFile(std::filesystem::path path);
    ~AtomicFile();
    AtomicFile(const AtomicFile&) = delete;
    AtomicFile& operator=(const AtomicFile&) = delete;

    /// Gives the file its size, all zeros, and makes sure that the disk has room for it. For write_at.
    void reserve(std::uint64_t size);
    /// Writes into what was reserved; may be called from several threads. The disk begins to store it at once.
    void write_at(std::uint64_t offset, const void* data, std::uint64_t size);
    void write(const void* data, std::uint64_t size);
    void write_zeros(std::uint64_t size);
    std::uint64_t position() const { return position_; }
    /// Makes the content durable and gives it its final name.
    void commit();
    /// The first half of commit() alone: what takes long and may fail is done for several files before any of them gets
    /// its name.
    void make_durable();

  private:
    [[noreturn]] void fail(std::string_view step) const;

    std::filesystem::path path_;
    std::filesystem::path temporary_;
    int descriptor_ = -1;
    bool durable_ = false;
    std::uint64_t position_ = 0;
};

/// The name of a file that is removed with the object, if it is there then.
class ScratchFile {
  public:
    explicit ScratchFile(std::filesystem::path path) : path_(std::move(path)) {}
    ~ScratchFile();
    ScratchFile(ScratchFile&& other) noexcept : path_(std::exchange(other.path_, {})) {}
    ScratchFile& operator=(ScratchFile&& other) = delete;
    const std::filesystem::path& path() const { return path_; }

  private:
    std::filesystem::path path_;
};

void write_file_atomically(const std::filesystem::path& path, std::string_view content);

/// Throws Error unless a file may be created at `path`: its folder exists, is writable and has `size` bytes free, and
/// nothing is there already (unless `overwrite`).
void check_output_path(const std::filesystem::path& path, std::uint64_t size, bool overwrite);

}  // namespace cerebellum
