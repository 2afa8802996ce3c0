#pragma once

#include <ggml-backend.h>
#include <llama.h>

#include <cstddef>
#include <map>

// llama.cpp exports its account of memory but installs no header for it: these are the declarations of src/llama-ext.h
// (v0.5.0).
// NOLINTBEGIN(readability-identifier-naming)
struct llama_memory_breakdown_data {
    size_t model = 0;
    size_t context = 0;
    size_t compute = 0;
};
using llama_memory_breakdown = std::map<ggml_backend_buffer_type_t, llama_memory_breakdown_data>;
// NOLINTEND(readability-identifier-naming)
LLAMA_API llama_memory_breakdown llama_get_memory_breakdown(const struct llama_context* ctx);
