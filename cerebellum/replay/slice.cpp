#include "cerebellum/replay/slice.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <cstring>

#include "cerebellum/core/error.h"
#include "cerebellum/core/quant_type.h"

namespace cerebellum {

namespace {

std::vector<std::byte> content(Device& device, const ggml_tensor* tensor) {
    device.wait();
    std::vector<std::byte> bytes(ggml_nbytes(tensor));
    ggml_backend_tensor_get(tensor, bytes.data(), 0, bytes.size());
    return bytes;
}

}  // namespace

std::size_t size_bytes(const LiveState& state) {
    std::size_t sum = 0;
    for (const auto& [root, value] : state.values) sum += size_bytes(*value);
    return sum;
}

Slice::Slice(const Topology& topology, Device& device, WeightStore& weights, int begin, int end, const Options& options)
    : topology_(&topology),
      device_(&device),
      store_(&weights),
      begin_(begin),
      substitutes_(options.substitutes),
      unchanged_rows_given_(options.unchanged_rows_given),
      live_in_(topology.live_set(begin)),
      live_out_(topology.live_set(end)) {
    const auto& graph = topology.graph();
    assert(0 <= begin && begin <= end && end <= graph.n_nodes);
    const auto n_tensors = graph.tensors.size();
    // Beside the tail's, the operations that put substituted rows in the place of others.
    constexpr std::size_t tail_nodes = 256, nodes_per_row_change = 16;
    const auto more_nodes = tail_nodes + nodes_per_row_change * GGML_MAX_SRC * options.substitutes.size();
    const auto graph_size = n_tensors + more_nodes;
    substituted_ = make_tensor_context(options.substitutes.size() * GGML_MAX_SRC);
    host_ = make_tensor_context(options.substitutes.size() * GGML_MAX_SRC);
    graph_.context = make_tensor_context(n_tensors + more_nodes, graph_size);
    graph_.graph = ggml_new_graph_custom(graph_.context.get(), graph_size, false);

    for (int i = begin; i < end; ++i) {
        auto* node = map(i);
        ggml_build_forward_expand(graph_.graph, node);
        const int root = graph.root(i);
        const bool computes = !RecordedGraph::is_view_operation(graph.tensors[static_cast<std::size_t>(i)].op);
        if (computes && std::ranges::binary_search(live_out_, root)) written_.insert(root);
    }
    // Whatever is read afterwards must keep its memory to the end, and must not be fused away.
    for (const int root : live_out_)
        if (const auto clone = mapped_.find(root); clone != mapped_.end()) ggml_set_output(clone->second);
    for (const int node : options.reads) {
        assert(mapped_.contains(node));
        const auto clone = mapped_.find(graph.root(node));
        if (clone != mapped_.end()) ggml_set_output(clone->second);
    }
    if (options.tail) {
        tail_ = options.tail(graph_.context.get(), [this](int index) -> ggml_tensor* {
            const auto clone = mapped_.find(index);
            return clone != mapped_.end() ? clone->second : nullptr;
        });
        for (auto* input : tail_.inputs) graph_.leafs.push_back(input);
        for (auto* output : tail_.outputs) {
            ggml_set_output(output);
            ggml_build_forward_expand(graph_.graph, output);
        }
    }
    graph_.seal();
    place_substitutes();
}

Slice::~Slice() {
    device_->wait();
    device_->forget(graph_);
}

void Slice::place_substitutes() {
    const auto data_of = [this](const ggml_tensor* tensor) {
        const auto& data = substitutes_.at(tensor->name).data;
        if (data.size() != ggml_nbytes(tensor))
            throw Error(fmt::format("a substitute for {} has {} bytes where {} are needed", tensor->name, data.size(),
                                    ggml_nbytes(tensor)));
        return data;
    };
    for (auto* tensor = ggml_get_first_tensor(host_.get()); tensor != nullptr;
         tensor = ggml_get_next_tensor(host_.get(), tensor)) {
        const auto data = data_of(tensor);
        host_buffers_.push_back(wrap_host_memory(data));
        tensor->buffer = host_buffers_.back().get();
        tensor->data = const_cast<std::byte*>(data.data());  // read only, like everything that ggml does with weights
    }
    substituted_buffer_ = device_->allocate(substituted_.get());
    if (!substituted_buffer_) return;
    ggml_backend_buffer_set_usage(substituted_buffer_.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    for (auto* tensor = ggml_get_first_tensor(substituted_.get()); tensor != nullptr;
         tensor = ggml_get_next_tensor(substituted_.get(), tensor)) {
        const auto data = data_of(tensor);
        ggml_backend_tensor_set(tensor, data.data(), 0, data.size());
    }
}

ggml_tensor* Slice::make(ggml_context* context, const RecordedTensor& recorded) const {
    auto* tensor = ggml_new_tensor(context, recorded.type, GGML_MAX_DIMS, recorded.shape.data());
    std::ranges::copy(recorded.strides, tensor->nb);
    std::strncpy(tensor->name, recorded.name.c_str(), GGML_MAX_NAME - 1);
    return tensor;
}

ggml_tensor* Slice::map_weight(const RecordedTensor& recorded) {
    const bool on_host = device_->is_host() || topology_->only_looked_up(recorded.name);
    const auto substitute = substitutes_.find(recorded.name);
    if (substitute != substitutes_.end()) return map_substitute(recorded, substitute->second, on_host);
    placed_.push_back(store_->place(recorded, on_host));
    return placed_.back().get();
}

ggml_tensor* Slice::map_substitute(const RecordedTensor& recorded, const Substitute& substitute, bool on_host) {
    if (!type_fits_row(substitute.type, recorded.shape[0]))
        throw Error(fmt::format("{} cannot be stored as {}: its rows have {} weights", recorded.name,
                                type_name(substitute.type), recorded.shape[0]));
    auto* context = on_host ? host_.get() : substituted_.get();
    auto shape = recorded.shape;
    if (!substitute.rows.empty()) shape[1] = std::ssize(substitute.rows);
    // A tied weight has one leaf per use; one copy of the data serves them all.
    for (auto* known = ggml_get_first_tensor(context); known != nullptr; known = ggml_get_next_tensor(context, known))
        if (recorded.name == known->name && std::ranges::equal(shape, known->ne)) return known;
    auto* tensor = ggml_new_tensor(context, substitute.type, GGML_MAX_DIMS, shape.data());
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
    auto* tensor = make(graph_.context.get(), recorded);
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
        tensor = map_node(index);
    } else if (recorded.kind == TensorKind::weight) {
        tensor = map_weight(recorded);
    } else {
        tensor = add_leaf(index);
    }
    return mapped_[index] = tensor;
}

ggml_tensor* Slice::add_leaf(int index) {
    auto* tensor = make(graph_.context.get(), topology_->graph().tensors[static_cast<std::size_t>(index)]);
    graph_.leafs.push_back(tensor);
    leafs_.emplace_back(index, tensor);
    return tensor;
}

ggml_tensor* Slice::map_node(int index) {
    const auto& graph = topology_->graph();
    const auto& recorded = graph.tensors[static_cast<std::size_t>(index)];
    if (const auto* substitute = rows_substituted_in(recorded))
        return recorded.op == GGML_OP_GET_ROWS ? map_lookup_of_rows(index, *substitute)
                                               : map_product_of_rows(index, *substitute);
    // Known before its sources are: some operations name their own result as a source.
    auto* tensor = mapped_[index] = make(graph_.context.get(), recorded);
    tensor->op = recorded.op;
    std::ranges::copy(recorded.op_params, tensor->op_params);
    for (std::size_t i = 0; i < GGML_MAX_SRC; ++i)
        tensor->src[i] = recorded.sources[i] >= 0 ? map(recorded.sources[i]) : nullptr;
    if (recorded.view_of >= 0) {
        tensor->view_src = map(graph.root(index));
        tensor->view_offs = recorded.view_offset;
    }
    return tensor;
}

// ---- single rows of a weight

/// Rows of a product's result, one number per row of the weight, that others take the place of.
struct ScatteredRows {
    std::vector<std::int64_t> rows;
};

namespace {

bool multiplies(ggml_op op) {
    return op == GGML_OP_MUL_MAT || op == GGML_OP_MUL_MAT_ID;
}

/// dst [n_rows, …] = a, but for the rows that b [n_changed, …] has.
void scatter_operation(ggml_tensor* dst, const ggml_tensor* a, const ggml_tensor* b, int thread, int threads,
                       void* userdata) {
    const auto& rows = static_cast<const ScatteredRows*>(userdata)->rows;
    const auto columns = ggml_nrows(dst);
    const auto length = static_cast<std::size_t>(dst->ne[0]), changed = rows.size();
    for (auto column = static_cast<std::size_t>(thread); column < static_cast<std::size_t>(columns);
         column += static_cast<std::size_t>(threads)) {
        auto* to = static_cast<float*>(dst->data) + column * length;
        std::memcpy(to, static_cast<const float*>(a->data) + column * length, length * sizeof(float));
        const auto* from = static_cast<const float*>(b->data) + column * changed;
        for (std::size_t i = 0; i < changed; ++i) to[rows[i]] = from[i];
    }
}

}  // namespace

bool Slice::can_change_rows(const Topology& topology, const std::string& weight) {
    const auto use = topology.weights().find(weight);
    if (use == topology.weights().end()) return false;
    const auto& tensors = topology.graph().tensors;
    return std::ranges::all_of(use->second.nodes, [&](int node) {
        const auto& reader = tensors[static_cast<std::size_t>(node)];
        const auto& read = tensors[static_cast<std::size_t>(reader.sources[0])];
        if (read.kind != TensorKind::weight || read.name != weight || reader.type != GGML_TYPE_F32) return false;
        if (multiplies(reader.op)) return reader.view_of < 0;
        const auto& ids = tensors[static_cast<std::size_t>(reader.sources[1])];
        return reader.op == GGML_OP_GET_ROWS && read.shape[2] == 1 && ids.shape[1] == 1;
    });
}

const Substitute* Slice::rows_substituted_in(const RecordedTensor& node) const {
    if ((!multiplies(node.op) && node.op != GGML_OP_GET_ROWS) || node.sources[0] < 0) return nullptr;
    const auto& read = topology_->graph().tensors[static_cast<std::size_t>(node.sources[0])];
    if (read.kind != TensorKind::weight) return nullptr;
    const auto found = substitutes_.find(read.name);
    return found == substitutes_.end() || found->second.rows.empty() ? nullptr : &found->second;
}

template <typename Index>
ggml_tensor* Slice::add_constant(ggml_type type, std::vector<Index> values, std::int64_t row_length, bool on_host) {
    auto& constant = constants_.emplace_back();
    constant.context = make_tensor_context(1);
    auto* tensor = ggml_new_tensor_2d(constant.context.get(), type, row_length, std::ssize(values) / row_length);
    constant.buffer = on_host ? GgmlBuffer(ggml_backend_alloc_ctx_tensors_from_buft(constant.context.get(),
                                                                                    ggml_backend_cpu_buffer_type()))
                              : device_->allocate(constant.context.get());
    ggml_backend_buffer_set_usage(constant.buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    ggml_backend_tensor_set(tensor, values.data(), 0, values.size() * sizeof(Index));
    return tensor;
}

ggml_tensor* Slice::map_product_of_rows(int index, const Substitute& substitute) {
    const auto& graph = topology_->graph();
    const auto& recorded = graph.tensors[static_cast<std::size_t>(index)];
    const auto& weight = graph.tensors[static_cast<std::size_t>(recorded.sources[0])];
    auto* context = graph_.context.get();
    const auto product = [&](ggml_tensor* of, std::int64_t n_rows) {
        auto shape = recorded.shape;
        shape[0] = n_rows;
        auto* tensor = ggml_new_tensor(context, recorded.type, GGML_MAX_DIMS, shape.data());
        tensor->op = recorded.op;
        std::ranges::copy(recorded.op_params, tensor->op_params);
        tensor->src[0] = of;
        for (std::size_t i = 1; i < GGML_MAX_SRC; ++i)
            tensor->src[i] = recorded.sources[i] >= 0 ? map(recorded.sources[i]) : nullptr;
        return tensor;
    };
    const auto n_changed = std::ssize(substitute.rows);
    ggml_tensor* unchanged = nullptr;
    if (unchanged_rows_given_) {
        unchanged = add_leaf(index);
    } else {
        placed_.push_back(store_->place(weight, device_->is_host()));
        unchanged = product(placed_.back().get(), recorded.shape[0]);
    }
    auto* changed = product(map_substitute(weight, substitute, device_->is_host()), n_changed);
    std::vector<std::int64_t> rows(substitute.rows.begin(), substitute.rows.end());
    if (device_->is_host()) {
        scattered_.push_back(std::make_unique<ScatteredRows>(ScatteredRows{std::move(rows)}));
        return ggml_map_custom2(context, unchanged, changed, scatter_operation, GGML_N_TASKS_MAX,
                                scattered_.back().get());
    }
    // ggml scatters rows of the second dimension.
    const auto columns = recorded.shape[1] * recorded.shape[2] * recorded.shape[3];
    const auto turned = [&](ggml_tensor* tensor) {
        return ggml_cont(context, ggml_transpose(context, ggml_reshape_2d(context, tensor, tensor->ne[0], columns)));
    };
    auto* indices = add_constant(GGML_TYPE_I64, std::move(rows), n_changed, false);
    auto* both = ggml_set_rows(context, turned(unchanged), turned(changed), indices);
    return ggml_cont_4d(context, ggml_transpose(context, both), recorded.shape[0], recorded.shape[1], recorded.shape[2],
                        recorded.shape[3]);
}

ggml_tensor* Slice::map_lookup_of_rows(int index, const Substitute& substitute) {
    const auto& graph = topology_->graph();
    const auto& recorded = graph.tensors[static_cast<std::size_t>(index)];
    const auto& weight = graph.tensors[static_cast<std::size_t>(recorded.sources[0])];
    auto* context = graph_.context.get();
    const bool on_host = device_->is_host() || topology_->only_looked_up(weight.name);
    // Where each row of the weight is among those substituted.
    std::vector<std::int32_t> places(static_cast<std::size_t>(weight.shape[1]));
    for (std::size_t i = 0; i < substitute.rows.size(); ++i)
        places[static_cast<std::size_t>(substitute.rows[i])] = static_cast<std::int32_t>(i);
    auto* ids = map(recorded.sources[1]);
    auto* found = ggml_get_rows(context, add_constant(GGML_TYPE_I32, std::move(places), 1, on_host), ids);
    auto* tensor = make(context, recorded);
    tensor->op = recorded.op;
    std::ranges::copy(recorded.op_params, tensor->op_params);
    tensor->src[0] = map_substitute(weight, substitute, on_host);
    tensor->src[1] = ggml_reshape_1d(context, found, ids->ne[0]);
    return tensor;
}

void Slice::run(const InputValues& inputs, const LiveState& in, std::span<const Value> tail_inputs) {
    const auto& graph = topology_->graph();
    device_->place(graph_);
    for (const auto& [index, tensor] : leafs_) {
        const auto& recorded = graph.tensors[static_cast<std::size_t>(index)];
        if (const auto live = in.values.find(index); live != in.values.end()) {
            device_->load(*live->second, tensor);
        } else if (recorded.kind == TensorKind::input) {
            const auto value = inputs.find(index);
            if (value == inputs.end()) throw Error(fmt::format("the input {} has no recorded value", recorded.name));
            device_->load(*value->second, tensor);
        } else if (recorded.kind == TensorKind::state && !std::ranges::binary_search(live_in_, index)) {
            device_->clear(tensor);
        } else {
            throw Error(fmt::format("the live value {} is missing at the start of a replay", recorded.name));
        }
    }
    assert(tail_inputs.size() == tail_.inputs.size());
    for (std::size_t i = 0; i < tail_inputs.size(); ++i) device_->load(*tail_inputs[i], tail_.inputs[i]);
    device_->compute(graph_);
}

LiveState Slice::live_out(const LiveState& in) const {
    LiveState out;
    for (const int root : live_out_) {
        const auto live = in.values.find(root);
        if (live != in.values.end() && !writes(root))
            out.values.insert(*live);
        else
            out.values[root] = device_->values().keep(mapped_.at(root));
    }
    return out;
}

std::vector<std::byte> Slice::read(int node) const {
    return content(*device_, mapped_.at(node));
}

std::vector<Value> Slice::keep_tail() const {
    std::vector<Value> kept;
    for (const auto* output : tail_.outputs) kept.push_back(device_->values().keep(output));
    return kept;
}

}  // namespace cerebellum
