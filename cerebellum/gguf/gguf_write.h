#pragma once

#include <ggml.h>
#include <gguf.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace cerebellum {

struct GgufContextDeleter {
    void operator()(gguf_context* context) const { gguf_free(context); }
};
using GgufContext = std::unique_ptr<gguf_context, GgufContextDeleter>;

/// Adds the description of a contiguous tensor, without data, at the end of `context`; its offset follows from the
/// tensors before it. Throws Error where the name does not fit ggml's 63 bytes, is there already, or the type cannot
/// hold rows of shape[0] weights.
void add_tensor(gguf_context* context, const std::string& name, ggml_type type,
                const std::array<std::int64_t, 4>& shape);

/// Header, metadata and tensor descriptions with their padding: the bytes of the file up to the first tensor's data.
std::vector<std::byte> metadata_bytes(const gguf_context* context);

/// `size_bytes` rounded up to the alignment of the files we write (GGUF_DEFAULT_ALIGNMENT).
constexpr std::uint64_t padded_bytes(std::uint64_t size_bytes) {
    return (size_bytes + GGUF_DEFAULT_ALIGNMENT - 1) / GGUF_DEFAULT_ALIGNMENT * GGUF_DEFAULT_ALIGNMENT;
}

}  // namespace cerebellum
