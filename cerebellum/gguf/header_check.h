#pragma once

#include <gguf.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

namespace cerebellum {

/// Why a file's header is not to be believed.
struct HeaderProblem {
    bool cut_short = false;  ///< the file ends too early; otherwise what is there is wrong, or
    bool foreign = false;    ///< nothing is wrong, but no type of ggml's
    std::string reason;      ///< one printable line: which key or tensor, and what of it
};

/// Walks everything in front of the tensor data (github.com/ggml-org/ggml, docs/gguf.md) without allocating by a number
/// that the file names, before a library that does is given the file: counts, lengths of strings and arrays, nested
/// arrays, duplicate names and those that are no UTF-8, types, alignment, shapes whose size overflows, offsets that
/// overlap, leave gaps or are not aligned. `file` is the whole file, of GGUF version 2 or 3 in this machine's byte
/// order. Empty where all is well; the data of the last tensors may still be missing.
std::optional<HeaderProblem> check_header(std::span<const std::byte> file);

/// Bytes of one value of this type in a file; 0 for strings and arrays, whose lengths stand in the file.
std::uint64_t gguf_value_bytes(gguf_type type);

}  // namespace cerebellum
