#pragma once

#include <ggml.h>

#include <cstdint>

namespace cerebellum {

/// general.file_type (enum llama_ftype) of a file most of whose weights are of a type, as llama-model-loader.cpp
/// chooses it; "guessed" where that has no number for the type.
std::uint32_t guessed_file_type(ggml_type type);

}  // namespace cerebellum
