#include "cerebellum/replay/slice.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <cstring>

#include "cerebellum/core/error.h"
#include "cerebellum/core/quant_type.h"

namespace cerebellum {

namespace {

std::vector<std::byte> content(const ggml_tensor* tensor) {
    std::vector<std::byte> bytes(ggml_nbytes(tensor));
    ggml_backend_tensor_get(tensor, bytes.data(), 0, bytes.size());
    return bytes;
}

}  // namespace

Slice::Slice(const Topology& topology, Device& device, int begin, int end, const Options& options)
    : topology_(&topology),
      device_(&device),
      begin_(begin),
      end_(end),
      substitutes_(options.substitutes),
      live_in_(topology.live_set(begin)) {
    const auto& graph = topology.graph();
    assert(0 <= begin && begin <= end && end <= graph.n_nodes);
    const auto n_tensors = graph.tensors.size();
    constexpr std::size_t tail_nodes = 64;
    const auto graph_size = n_tensors + tail_nodes;
    leafs_ = make_tensor_context(n_tensors);
    weights_ = make_tensor_context(options.substitutes.size() * GGML_MAX_SRC);
    nodes_ = make_tensor_context(n_tensors + tail_nodes, graph_size);
    graph_ = ggml_new_graph_custom(nodes_.get(), graph_size, false);

    for (int i = begin; i < end; ++i) {
        auto* node = map(i);
        ggml_build_forward_expand(graph_, node);
    }
    // Whatever is read afterwards must keep its memory to the end, and must not be fused away.
    const auto keep = [&](int index) {
        if (index >= begin && index < end) ggml_set_output(mapped_.at(index));
    };
    for (const int root : topology.live_set(end)) keep(root);
    for (const int node : options.reads) {
        assert(mapped_.contains(node));
        keep(graph.root(node));
    }
    if (options.tail) {
        tail_ = options.tail(nodes_.get(), mapped_.at(graph.logits));
        ggml_set_output(tail_);
        ggml_build_forward_expand(graph_, tail_);
    }
    leaf_buffer_ = device.allocate(leafs_.get());
    weight_buffer_ = device.allocate(weights_.get());
    if (weight_buffer_) ggml_backend_buffer_set_usage(weight_buffer_.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    for (auto* tensor = ggml_get_first_tensor(weights_.get()); tensor != nullptr;
         tensor = ggml_get_next_tensor(weights_.get(), tensor)) {
        const auto& data = substitutes_.at(tensor->name).data;
        if (data.size() != ggml_nbytes(tensor))
            throw Error(fmt::format("a substitute for {} has {} bytes where {} are needed", tensor->name, data.size(),
                                    ggml_nbytes(tensor)));
        ggml_backend_tensor_set(tensor, data.data(), 0, data.size());
    }
}

Slice::~Slice() {
    device_->forget(graph_);
}

ggml_tensor* Slice::make(ggml_context* context, const RecordedTensor& recorded, bool with_strides) const {
    auto* tensor = ggml_new_tensor(context, recorded.type, GGML_MAX_DIMS, recorded.shape.data());
    if (with_strides) std::ranges::copy(recorded.strides, tensor->nb);
    std::strncpy(tensor->name, recorded.name.c_str(), GGML_MAX_NAME - 1);
    return tensor;
}

ggml_tensor* Slice::map_substitute(int index, const Substitute& substitute) {
    const auto& recorded = topology_->graph().tensors[static_cast<std::size_t>(index)];
    if (!type_fits_row(substitute.type, recorded.shape[0]))
        throw Error(fmt::format("{} cannot be stored as {}: its rows have {} weights", recorded.name,
                                type_name(substitute.type), recorded.shape[0]));
    // A tied weight has one leaf per use; one copy of the data serves them all.
    for (auto* known = ggml_get_first_tensor(weights_.get()); known != nullptr;
         known = ggml_get_next_tensor(weights_.get(), known))
        if (recorded.name == known->name && std::ranges::equal(recorded.shape, known->ne)) return known;
    auto* tensor = ggml_new_tensor(weights_.get(), substitute.type, GGML_MAX_DIMS, recorded.shape.data());
    std::strncpy(tensor->name, recorded.name.c_str(), GGML_MAX_NAME - 1);
    return tensor;
}

/// A view whose memory belongs to another tensor: a view operation, or an in-place operation that already ran.
ggml_tensor* Slice::map_view(int index) {
    const auto& graph = topology_->graph();
    const auto& recorded = graph.tensors[static_cast<std::size_t>(index)];
    const int root_index = graph.root(index);
    const auto& root = graph.tensors[static_cast<std::size_t>(root_index)];
    auto* base = map(root_index);
    auto* tensor = make(nodes_.get(), recorded, true);
    std::size_t offset = recorded.view_offset;
    if (base->type != root.type) {
        // A view into a substituted weight: the same rows, in the substitute's row size.
        const auto old_row = ggml_row_size(root.type, root.shape[0]);
        const auto new_row = ggml_row_size(base->type, root.shape[0]);
        const auto scaled = [&](std::size_t bytes) {
            if (recorded.type != root.type || recorded.strides[0] != root.strides[0] || bytes % old_row != 0)
                throw Error(fmt::format("{} cannot be substituted: {} reads it in pieces smaller than a row", root.name,
                                        recorded.name));
            return bytes / old_row * new_row;
        };
        tensor->type = base->type;
        tensor->nb[0] = base->nb[0];
        for (std::size_t i = 1; i < GGML_MAX_DIMS; ++i) tensor->nb[i] = scaled(recorded.strides[i]);
        offset = scaled(offset);
    }
    tensor->view_src = base;
    tensor->view_offs = offset;
    tensor->op = GGML_OP_VIEW;
    tensor->src[0] = base;
    return tensor;
}

ggml_tensor* Slice::map(int index) {
    if (const auto known = mapped_.find(index); known != mapped_.end()) return known->second;
    const auto& graph = topology_->graph();
    const auto& recorded = graph.tensors[static_cast<std::size_t>(index)];
    ggml_tensor* tensor = nullptr;
    if (recorded.view_of >= 0 &&
        (index < begin_ || index >= graph.n_nodes || RecordedGraph::is_view_operation(recorded.op))) {
        tensor = map_view(index);
    } else if (index >= begin_ && index < graph.n_nodes) {
        // Known before its sources are: some operations name their own result as a source.
        tensor = mapped_[index] = make(nodes_.get(), recorded, true);
        tensor->op = recorded.op;
        std::ranges::copy(recorded.op_params, tensor->op_params);
        for (std::size_t i = 0; i < GGML_MAX_SRC; ++i)
            tensor->src[i] = recorded.sources[i] >= 0 ? map(recorded.sources[i]) : nullptr;
        if (recorded.view_of >= 0) {
            tensor->view_src = map(graph.root(index));
            tensor->view_offs = recorded.view_offset;
        }
    } else if (recorded.kind == TensorKind::weight) {
        const auto substitute = substitutes_.find(recorded.name);
        tensor = substitute != substitutes_.end() ? map_substitute(index, substitute->second) : recorded.weight;
    } else {
        tensor = make(leafs_.get(), recorded, true);
        leaf_indices_.push_back(index);
    }
    return mapped_[index] = tensor;
}

void Slice::run(const WindowInputs& inputs, const LiveState& in) {
    const auto& graph = topology_->graph();
    for (const int index : leaf_indices_) {
        auto* tensor = mapped_.at(index);
        const auto& recorded = graph.tensors[static_cast<std::size_t>(index)];
        if (const auto live = in.values.find(index); live != in.values.end()) {
            ggml_backend_tensor_set(tensor, live->second->data(), 0, live->second->size());
        } else if (recorded.kind == TensorKind::input) {
            const auto value = std::ranges::find(inputs.values, index, [](const auto& entry) { return entry.first; });
            if (value == inputs.values.end())
                throw Error(fmt::format("the input {} has no recorded value", recorded.name));
            ggml_backend_tensor_set(tensor, value->second->data(), 0, value->second->size());
        } else if (recorded.kind == TensorKind::state && !std::ranges::binary_search(live_in_, index)) {
            ggml_backend_tensor_memset(tensor, 0, 0, ggml_nbytes(tensor));
        } else {
            throw Error(fmt::format("the live value {} is missing at the start of a replay", recorded.name));
        }
    }
    device_->compute(graph_, nodes_.get());
}

LiveState Slice::live_out(const LiveState& in) const {
    const auto& graph = topology_->graph();
    LiveState out;
    for (const int root : topology_->live_set(end_)) {
        bool written = root >= begin_ && root < end_;
        for (int i = begin_; i < end_ && !written; ++i) written = graph.writes_in_place(i) && graph.root(i) == root;
        if (const auto live = in.values.find(root); !written && live != in.values.end()) {
            out.values.insert(*live);
        } else {
            out.values[root] = std::make_shared<const std::vector<std::byte>>(content(mapped_.at(root)));
        }
    }
    return out;
}

std::vector<std::byte> Slice::read(int node) const {
    return content(mapped_.at(node));
}

std::vector<std::byte> Slice::read_tail() const {
    return content(tail_);
}

}  // namespace cerebellum
