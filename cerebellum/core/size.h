#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>

namespace cerebellum {

/// A size as people write it: bytes ("12GB" = 12·10⁹, "11.5GiB" = 11.5·2³⁰, "80MB", "3500000") or bits per weight
/// ("4.25bpw", counted over all weights of the file).
struct SizeGoal {
    enum class Unit { bytes, bits_per_weight };
    Unit unit = Unit::bytes;
    double value = 0.0;

    /// The goal as bytes of a file that holds `n_weights` weights.
    std::uint64_t bytes(std::uint64_t n_weights) const;
};

/// Throws UsageError where the text is no positive size.
SizeGoal parse_size(std::string_view text);

/// "3.42 MB" style, decimal units, three significant digits.
std::string format_bytes(std::uint64_t bytes);

}  // namespace cerebellum
