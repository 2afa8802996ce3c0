#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>

#include "cerebellum/gguf/gguf_file.h"

namespace cerebellum {

double bits_per_weight(std::uint64_t bytes, std::uint64_t weights);

/// Everything that a model file's header says: bytes, weights, bpw, architecture, fingerprint, metadata, and tensors
/// with name, type, shape (fastest dimension first), bytes and bpw.
nlohmann::json inspection(const GgufFile& file);

}  // namespace cerebellum
