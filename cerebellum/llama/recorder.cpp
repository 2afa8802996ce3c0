#include "cerebellum/llama/recorder.h"

#include <fmt/format.h>
#include <ggml-backend.h>
#include <llama.h>

#include <algorithm>
#include <cstring>
#include <unordered_map>

#include "cerebellum/core/error.h"
#include "cerebellum/core/ggml_abort.h"
#include "cerebellum/llama/context.h"
#include "cerebellum/llama/log.h"

namespace cerebellum {

namespace {

using Bytes = std::shared_ptr<const std::vector<std::byte>>;

}  // namespace

struct Recorder::State {
    const Model* model = nullptr;
    int n_tokens = 0;
    LlamaContext context;
    RecordedGraph graph;

    // One recording in progress.
    std::vector<ggml_tensor*> nodes;
    std::unordered_map<const ggml_tensor*, std::vector<std::byte>> input_values;

    std::vector<Bytes> shared_values;  // one per distinct content seen lately

    static bool on_node(ggml_tensor* tensor, bool ask, void* user_data) {
        if (!ask) return true;
        auto& state = *static_cast<State*>(user_data);
        state.nodes.push_back(tensor);
        for (const ggml_tensor* source : tensor->src) {
            if (source == nullptr) continue;
            while (source->view_src != nullptr) source = source->view_src;
            if (source->op != GGML_OP_NONE || (source->flags & GGML_TENSOR_FLAG_INPUT) == 0) continue;
            auto& value = state.input_values[source];
            if (!value.empty()) continue;
            value.resize(ggml_nbytes(source));
            ggml_backend_tensor_get(source, value.data(), 0, value.size());
        }
        return false;
    }

    static bool always_abort(void*) { return true; }

    void run(std::span<const Token> tokens) {
        nodes.clear();
        input_values.clear();
        WindowBatch window(n_tokens);
        std::ranges::copy(tokens, window.batch().token);
        const LogCapture log;
        const AbortBlame blame(model->path().native());
        llama_memory_clear(llama_get_memory(context.get()), true);
        const int status = llama_decode(context.get(), window.batch());
        // 2 is llama_decode's answer to an abort; anything else means that no graph came to be.
        if (status != 2 || nodes.empty())
            throw NotReplayable(fmt::format("cannot record the graph of {}: {}", model->path().string(),
                                            log.last_error(fmt::format("llama_decode returned {}", status))));
    }

    RecordedGraph copy_graph() const {
        RecordedGraph result;
        result.n_tokens = n_tokens;
        result.n_nodes = static_cast<int>(nodes.size());
        std::unordered_map<const ggml_tensor*, int> index;
        for (const auto* node : nodes) index.emplace(node, static_cast<int>(index.size()));
        std::vector<ggml_tensor*> all = nodes;
        // Sources and view sources that are not nodes are leafs; appended in the order they are met.
        for (std::size_t i = 0; i < all.size(); ++i) {
            const auto visit = [&](ggml_tensor* tensor) {
                if (tensor == nullptr || index.contains(tensor)) return;
                index.emplace(tensor, static_cast<int>(all.size()));
                all.push_back(tensor);
            };
            for (auto* source : all[i]->src) visit(source);
            visit(all[i]->view_src);
        }
        for (std::size_t i = 0; i < all.size(); ++i) {
            auto* tensor = all[i];
            RecordedTensor copy;
            copy.type = tensor->type;
            std::ranges::copy(tensor->ne, copy.shape.begin());
            std::ranges::copy(tensor->nb, copy.strides.begin());
            copy.op = tensor->op;
            std::ranges::copy(tensor->op_params, copy.op_params.begin());
            for (std::size_t s = 0; s < GGML_MAX_SRC; ++s)
                copy.sources[s] = tensor->src[s] != nullptr ? index.at(tensor->src[s]) : -1;
            if (tensor->view_src != nullptr) {
                copy.view_of = index.at(tensor->view_src);
                copy.view_offset = tensor->view_offs;
            }
            copy.name = tensor->name;
            if (i >= nodes.size()) {
                if (tensor->op != GGML_OP_NONE)
                    throw NotReplayable(
                        fmt::format("cannot record the graph of {}: node {} ({}) is used but never scheduled",
                                    model->path().string(), tensor->name, ggml_op_name(tensor->op)));
                if ((tensor->flags & GGML_TENSOR_FLAG_INPUT) != 0) {
                    copy.kind = TensorKind::input;
                } else if (tensor->buffer != nullptr &&
                           ggml_backend_buffer_get_usage(tensor->buffer) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS) {
                    copy.kind = TensorKind::weight;
                    copy.weight = tensor;
                } else {
                    copy.kind = TensorKind::state;
                }
            }
            result.tensors.push_back(std::move(copy));
        }
        const int n_vocab = model->n_vocab();
        for (int i = result.n_nodes - 1; i >= 0 && result.logits < 0; --i) {
            const auto& tensor = result.tensors[static_cast<std::size_t>(i)];
            if (tensor.shape[0] == n_vocab && tensor.shape[1] == n_tokens && tensor.type == GGML_TYPE_F32)
                result.logits = i;
        }
        if (result.logits < 0)
            throw NotReplayable(fmt::format("cannot record the graph of {}: it has no node of {} x {} logits",
                                            model->path().string(), n_vocab, n_tokens));
        return result;
    }

    /// Whether the graph just recorded is the one in `graph`, operation by operation.
    bool same_structure() const {
        if (static_cast<int>(nodes.size()) != graph.n_nodes) return false;
        for (std::size_t i = 0; i < nodes.size(); ++i) {
            const auto& known = graph.tensors[i];
            if (nodes[i]->op != known.op || nodes[i]->type != known.type ||
                !std::equal(std::begin(nodes[i]->ne), std::end(nodes[i]->ne), known.shape.begin()) ||
                !std::equal(std::begin(nodes[i]->op_params), std::end(nodes[i]->op_params), known.op_params.begin()))
                return false;
        }
        return true;
    }

    Bytes share(std::vector<std::byte>&& value) {
        for (const auto& known : shared_values)
            if (*known == value) return known;
        constexpr std::size_t remembered = 64;  // masks and positions repeat from window to window, tokens do not
        if (shared_values.size() >= remembered) shared_values.erase(shared_values.begin());
        shared_values.push_back(std::make_shared<const std::vector<std::byte>>(std::move(value)));
        return shared_values.back();
    }
};

Recorder::Recorder(const Model& model, int n_tokens) : state_(std::make_unique<State>()) {
    state_->model = &model;
    state_->n_tokens = n_tokens;
    auto params = cpu_context_params(n_tokens, 1);
    params.cb_eval = State::on_node;
    params.cb_eval_user_data = state_.get();
    state_->context = make_context(model, params);
    llama_set_abort_callback(state_->context.get(), State::always_abort, nullptr);
    const std::vector<Token> tokens(static_cast<std::size_t>(n_tokens), model.first_token());
    state_->run(tokens);
    state_->graph = state_->copy_graph();
}

Recorder::~Recorder() = default;

const RecordedGraph& Recorder::graph() const {
    return state_->graph;
}

WindowInputs Recorder::inputs(std::span<const Token> tokens) {
    if (static_cast<int>(tokens.size()) != state_->n_tokens)
        throw Error(
            fmt::format("a window of {} tokens was given where {} are expected", tokens.size(), state_->n_tokens));
    state_->run(tokens);
    if (!state_->same_structure())
        throw NotReplayable(fmt::format("{} builds different graphs for different windows and cannot be replayed",
                                        state_->model->path().string()));
    WindowInputs result;
    // Leafs are matched by their place in the graph: the tensors themselves are new in every recording.
    std::unordered_map<const ggml_tensor*, int> done;
    const auto match = [&](const ggml_tensor* tensor, int index) {
        if (tensor == nullptr || index < 0) return;
        while (tensor->view_src != nullptr) tensor = tensor->view_src;
        index = state_->graph.root(index);
        if (state_->graph.tensors[static_cast<std::size_t>(index)].kind != TensorKind::input) return;
        if (!done.emplace(tensor, index).second) return;
        result.values.emplace_back(index, state_->share(std::move(state_->input_values.at(tensor))));
    };
    for (std::size_t i = 0; i < state_->nodes.size(); ++i)
        for (std::size_t s = 0; s < GGML_MAX_SRC; ++s)
            match(state_->nodes[i]->src[s], state_->graph.tensors[i].sources[s]);
    return result;
}

}  // namespace cerebellum
