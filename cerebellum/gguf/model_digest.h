#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "cerebellum/gguf/gguf_file.h"

namespace cerebellum {

/// The name of model_digest() for remembered_digest(): whoever changes what is hashed changes it.
inline constexpr std::string_view model_digest_kind = "model digest 1";

/// SHA-256 (hexadecimal) of what a model is: all metadata in the order of its keys, but for how it is split, and of all
/// tensors, in the order of their names, name, type, shape and the SHA-256 of their data. Every byte is read, on
/// several threads and not through the mapping. `read` gets the bytes of data so far, from one thread at a time; what
/// it throws ends the work. Throws Error where a file cannot be read or has become shorter.
std::string model_digest(const GgufFile& file, const std::function<void(std::uint64_t done)>& read);

/// The same of the metadata and the tensors' names, types and shapes alone.
std::string header_digest(const GgufFile& file);

}  // namespace cerebellum
