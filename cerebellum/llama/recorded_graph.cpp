#include "cerebellum/llama/recorded_graph.h"

namespace cerebellum {

std::size_t RecordedTensor::size_bytes() const {
    for (const auto n : shape)
        if (n <= 0) return 0;
    const auto block = static_cast<std::size_t>(ggml_blck_size(type));
    std::size_t bytes = block == 1 ? ggml_type_size(type) + static_cast<std::size_t>(shape[0] - 1) * strides[0]
                                   : static_cast<std::size_t>(shape[0]) * strides[0] / block;
    for (std::size_t i = 1; i < GGML_MAX_DIMS; ++i) bytes += static_cast<std::size_t>(shape[i] - 1) * strides[i];
    return bytes;
}

int RecordedGraph::root(int index) const {
    while (tensors[static_cast<std::size_t>(index)].view_of >= 0)
        index = tensors[static_cast<std::size_t>(index)].view_of;
    return index;
}

bool RecordedGraph::is_view_operation(ggml_op op) {
    return op == GGML_OP_NONE || op == GGML_OP_VIEW || op == GGML_OP_RESHAPE || op == GGML_OP_PERMUTE ||
           op == GGML_OP_TRANSPOSE;
}

}  // namespace cerebellum
