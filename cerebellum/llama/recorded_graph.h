#pragma once

#include <ggml.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace cerebellum {

enum class TensorKind {
    node,    // computed by an operation of the graph
    weight,  // a tensor of the model
    input,   // set for every window: tokens, positions, masks, indices
    state,   // key-value cache or recurrent state, zero at the start of a window
};

/// One tensor of a recorded graph, with everything that is needed to make the same one again.
struct RecordedTensor {
    TensorKind kind = TensorKind::node;
    ggml_type type = GGML_TYPE_F32;
    std::array<std::int64_t, GGML_MAX_DIMS> shape{};
    std::array<std::size_t, GGML_MAX_DIMS> strides{};  // bytes
    ggml_op op = GGML_OP_NONE;
    std::array<std::int32_t, GGML_MAX_OP_PARAMS / sizeof(std::int32_t)> op_params{};
    std::array<int, GGML_MAX_SRC> sources{};  // indices into RecordedGraph::tensors, -1 for none
    int view_of = -1;                         // the tensor whose memory this one shares, -1 for its own memory
    std::size_t view_offset = 0;              // bytes into view_of
    std::string name;
    ggml_tensor* weight = nullptr;  // kind weight: the model's own tensor, valid as long as the model

    /// Bytes from the first to the last element.
    std::size_t size_bytes() const;
};

/// The compute graph that libllama built for one window, deep-copied: execution order first, leafs behind.
/// The same graph serves every window of the same length.
struct RecordedGraph {
    std::vector<RecordedTensor> tensors;  // [0, n_nodes) are the nodes in execution order
    int n_nodes = 0;
    int logits = -1;   // the node that holds the logits, [n_vocab, n_tokens]
    int n_tokens = 0;  // window length

    /// The tensor whose memory `index` lives in: itself, or what it is a view of.
    int root(int index) const;
    /// Whether the operation only reinterprets memory and computes nothing.
    static bool is_view_operation(ggml_op op);
};

/// Values of the graph's input leafs for one window, by tensor index. Equal contents are shared between windows.
struct WindowInputs {
    std::vector<std::pair<int, std::shared_ptr<const std::vector<std::byte>>>> values;
};

}  // namespace cerebellum
