#pragma once

#include <ggml.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace cerebellum {

/// Facts about ggml's tensor types. All of them are asked of ggml; there is no table of ours.

/// ggml's own spelling ("q4_K", "iq2_xxs", "f16").
std::string type_name(ggml_type type);
/// Parses a type name without regard to case; empty if ggml has no such type.
std::optional<ggml_type> parse_type(std::string_view name);
/// Bytes of `rows` rows of `row_length` weights each. Throws Error where the row length is no multiple of the block.
std::uint64_t type_size_bytes(ggml_type type, std::int64_t row_length, std::int64_t rows);
/// Average storage of one weight, in bits.
double bits_per_weight(ggml_type type);
/// Whether a row of this many weights can be stored in the type.
bool type_fits_row(ggml_type type, std::int64_t row_length);
/// Whether ggml's quantizer refuses to work without an importance matrix.
bool type_needs_imatrix(ggml_type type);
/// A type that ggml's public quantizer can produce and llama.cpp can read back.
bool type_is_quantizable(ggml_type type);

/// The types a user gets without asking: K-quants, the legacy 32-blocks, the IQ types, in falling size.
/// 16-bit types are considered on top of these where they are smaller than the source.
const std::vector<ggml_type>& default_types();

}  // namespace cerebellum
