#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace cerebellum {

/// SHA-256, incrementally. Not thread-safe; one object hashes one message.
class Sha256 {
  public:
    Sha256();
    ~Sha256();
    Sha256(Sha256&&) noexcept;
    Sha256& operator=(Sha256&&) noexcept;

    void update(std::span<const std::byte> bytes);
    void update(std::string_view text);
    /// Lower-case hexadecimal digest; the object cannot be used afterwards.
    std::string finish();

  private:
    struct State;
    std::unique_ptr<State> state_;
};

std::string sha256(std::string_view text);

/// Of whole files one behind the other, read in pieces; `read(done)` is called after each with the bytes so far. Throws
/// Error naming the file where one cannot be read.
std::string sha256_of_files(std::span<const std::filesystem::path> paths,
                            const std::function<void(std::uint64_t done)>& read);

}  // namespace cerebellum
