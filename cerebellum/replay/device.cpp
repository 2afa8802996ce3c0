#include "cerebellum/replay/device.h"

#include <fmt/format.h>
#include <ggml-cpu.h>

#include "cerebellum/core/error.h"

namespace cerebellum {

GgmlContext make_tensor_context(std::size_t n_tensors, std::size_t graph_nodes) {
    ggml_init_params params{};
    params.mem_size = ggml_tensor_overhead() * (n_tensors + 1) +
                      (graph_nodes > 0 ? ggml_graph_overhead_custom(graph_nodes, false) : 0);
    params.no_alloc = true;
    return GgmlContext(ggml_init(params));
}

struct Device::State {
    struct BackendFree {
        void operator()(ggml_backend* backend) const { ggml_backend_free(backend); }
    };
    struct PoolFree {
        void operator()(ggml_threadpool* pool) const { ggml_threadpool_free(pool); }
    };
    struct ArenaFree {
        void operator()(ggml_gallocr* arena) const { ggml_gallocr_free(arena); }
    };
    // The backend uses the pool, so the pool must go last.
    std::unique_ptr<ggml_threadpool, PoolFree> pool;
    std::unique_ptr<ggml_backend, BackendFree> backend;
    std::unique_ptr<ggml_gallocr, ArenaFree> arena;
    const ggml_cgraph* current = nullptr;
};

Device::Device(int threads) : threads_(threads), state_(std::make_unique<State>()) {
    auto params = ggml_threadpool_params_default(threads);
    state_->pool.reset(ggml_threadpool_new(&params));
    state_->backend.reset(ggml_backend_cpu_init());
    if (!state_->pool || !state_->backend)
        throw Error(fmt::format("cannot start {} threads for the CPU backend", threads));
    ggml_backend_cpu_set_n_threads(state_->backend.get(), threads);
    ggml_backend_cpu_set_threadpool(state_->backend.get(), state_->pool.get());
    state_->arena.reset(ggml_gallocr_new(ggml_backend_get_default_buffer_type(state_->backend.get())));
}

Device::~Device() = default;

GgmlBuffer Device::allocate(ggml_context* context) {
    if (ggml_get_first_tensor(context) == nullptr) return nullptr;
    GgmlBuffer buffer(ggml_backend_alloc_ctx_tensors(context, state_->backend.get()));
    if (!buffer) throw Error("not enough memory for the inputs of a replay; use a smaller --ctx");
    return buffer;
}

void Device::compute(ggml_cgraph* graph, ggml_context* nodes) {
    if (state_->current != graph) {
        for (auto* tensor = ggml_get_first_tensor(nodes); tensor != nullptr;
             tensor = ggml_get_next_tensor(nodes, tensor)) {
            tensor->data = nullptr;
            tensor->buffer = nullptr;
        }
        state_->current = nullptr;
        if (!ggml_gallocr_alloc_graph(state_->arena.get(), graph))
            throw Error("not enough memory for the temporaries of a replay; use a smaller --ctx");
        state_->current = graph;
    }
    if (ggml_backend_graph_compute(state_->backend.get(), graph) != GGML_STATUS_SUCCESS)
        throw Error("the CPU backend could not run a replay graph");
}

void Device::forget(const ggml_cgraph* graph) {
    if (state_->current == graph) state_->current = nullptr;
}

}  // namespace cerebellum
