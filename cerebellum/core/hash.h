#pragma once

#include <cstddef>
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

}  // namespace cerebellum
