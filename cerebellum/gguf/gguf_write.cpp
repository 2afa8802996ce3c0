#include "cerebellum/gguf/gguf_write.h"

#include <fmt/format.h>

#include <algorithm>

#include "cerebellum/core/error.h"
#include "cerebellum/core/quant_type.h"

namespace cerebellum {

void add_tensor(gguf_context* context, const std::string& name, ggml_type type,
                const std::array<std::int64_t, 4>& shape) {
    // What ggml would answer with an abort or a silently shortened name.
    if (name.size() >= GGML_MAX_NAME)
        throw Error(fmt::format("cannot write tensor {}: its name has {} bytes and GGUF allows {}", name, name.size(),
                                GGML_MAX_NAME - 1));
    if (gguf_find_tensor(context, name.c_str()) >= 0)
        throw Error(fmt::format("cannot write tensor {}: there is one of that name already", name));
    if (!type_fits_row(type, shape[0]))
        throw Error(fmt::format("tensor {} cannot have type {}: its rows of {} weights are no multiple of {}", name,
                                type_name(type), shape[0], ggml_blck_size(type)));
    ggml_tensor tensor{};
    tensor.type = type;
    std::ranges::copy(shape, tensor.ne);
    tensor.nb[0] = ggml_type_size(type);
    tensor.nb[1] = ggml_row_size(type, shape[0]);
    for (int i = 2; i < GGML_MAX_DIMS; ++i)
        tensor.nb[i] = tensor.nb[i - 1] * static_cast<std::size_t>(tensor.ne[i - 1]);
    ggml_set_name(&tensor, name.c_str());
    gguf_add_tensor(context, &tensor);
}

std::vector<std::byte> metadata_bytes(const gguf_context* context) {
    std::vector<std::byte> bytes(gguf_get_meta_size(context));
    gguf_get_meta_data(context, bytes.data());
    return bytes;
}

}  // namespace cerebellum
