#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "cerebellum/llama/recorded_graph.h"

namespace cerebellum {

using Shape = std::array<std::int64_t, GGML_MAX_DIMS>;

/// Content of a tensor together with how to step through it.
struct View {
    std::vector<std::byte> bytes;
    Shape shape{};
    std::array<std::size_t, GGML_MAX_DIMS> strides{};

    const std::byte* at(std::int64_t i1, std::int64_t i2, std::int64_t i3) const {
        return bytes.data() + static_cast<std::size_t>(i1) * strides[1] + static_cast<std::size_t>(i2) * strides[2] +
               static_cast<std::size_t>(i3) * strides[3];
    }
};

/// Whether a node multiplies a weight with activations in F32, as a matrix or as a mixture's experts.
inline bool multiplies_weight(const RecordedGraph& graph, const RecordedTensor& node) {
    if (node.op != GGML_OP_MUL_MAT && node.op != GGML_OP_MUL_MAT_ID) return false;
    const auto tensor = [&](int source) -> const RecordedTensor& {
        return graph.tensors[static_cast<std::size_t>(node.sources[static_cast<std::size_t>(source)])];
    };
    return tensor(0).kind == TensorKind::weight && tensor(1).type == GGML_TYPE_F32;
}

/// Where the replay of [begin, end) may end if nothing behind it is replayed: behind the last node that is read. This
/// spares the head its product with the output matrix, a good part of a small model's work.
inline int last_read_end(int begin, int end, std::span<const int> reads) {
    const auto inside = [&](int node) { return begin <= node && node < end; };
    return !reads.empty() && std::ranges::all_of(reads, inside) ? std::ranges::max(reads) + 1 : end;
}

/// Calls visit(expert, row) for every input of a mixture's matrices, once for each expert that a token is routed to.
template <typename Visit>
void visit_expert_inputs(const View& activations, const View& ids, Visit&& visit) {
    for (std::int64_t token = 0; token < ids.shape[1]; ++token)
        for (std::int64_t k = 0; k < ids.shape[0]; ++k) {
            std::int32_t expert = 0;
            std::memcpy(&expert, ids.at(token, 0, 0) + static_cast<std::size_t>(k) * ids.strides[0], sizeof expert);
            visit(std::int64_t{expert},
                  reinterpret_cast<const float*>(activations.at(k % activations.shape[1], token, 0)));
        }
}

/// Calls visit(matrix, i2, i3) for every two-dimensional part of a weight's activations: which of its matrices, behind
/// each other, it is multiplied with.
template <typename Visit>
void visit_matrices(const Shape& weight, const Shape& activations, Visit&& visit) {
    for (std::int64_t i3 = 0; i3 < activations[3]; ++i3)
        for (std::int64_t i2 = 0; i2 < activations[2]; ++i2)
            visit((i3 % weight[3]) * weight[2] + i2 % weight[2], i2, i3);
}

/// Calls visit(matrix, row) for every input of a weight, which may be several matrices behind each other.
template <typename Visit>
void visit_inputs(const Shape& weight, const View& activations, Visit&& visit) {
    visit_matrices(weight, activations.shape, [&](std::int64_t matrix, std::int64_t i2, std::int64_t i3) {
        for (std::int64_t i1 = 0; i1 < activations.shape[1]; ++i1)
            visit(matrix, reinterpret_cast<const float*>(activations.at(i1, i2, i3)));
    });
}

}  // namespace cerebellum
