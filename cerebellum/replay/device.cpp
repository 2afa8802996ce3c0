#include "cerebellum/replay/device.h"

#include <fmt/format.h>
#include <ggml-cpu.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "cerebellum/core/error.h"
#include "cerebellum/core/figure_error.h"
#include "cerebellum/core/ggml_device.h"

namespace cerebellum {

namespace {

struct BackendFree {
    void operator()(ggml_backend* backend) const { ggml_backend_free(backend); }
};
struct PoolFree {
    void operator()(ggml_threadpool* pool) const { ggml_threadpool_free(pool); }
};
struct ArenaFree {
    void operator()(ggml_gallocr* arena) const { ggml_gallocr_free(arena); }
};
struct SchedulerFree {
    void operator()(ggml_backend_sched* scheduler) const { ggml_backend_sched_free(scheduler); }
};
using Backend = std::unique_ptr<ggml_backend, BackendFree>;

bool is_cpu(ggml_backend_dev_t device) {
    return ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU;
}

}  // namespace

GgmlContext make_tensor_context(std::size_t n_tensors, std::size_t graph_nodes) {
    ggml_init_params params{};
    params.mem_size = ggml_tensor_overhead() * (n_tensors + 1) +
                      (graph_nodes > 0 ? ggml_graph_overhead_custom(graph_nodes, false) : 0);
    params.no_alloc = true;
    return GgmlContext(ggml_init(params));
}

GgmlBuffer wrap_host_memory(std::span<const std::byte> bytes) {
    // A buffer must begin at an aligned address; the data in it need not.
    constexpr std::uintptr_t alignment = 4096;
    const auto before = reinterpret_cast<std::uintptr_t>(bytes.data()) % alignment;
    GgmlBuffer buffer(
        ggml_backend_cpu_buffer_from_ptr(const_cast<std::byte*>(bytes.data()) - before, before + bytes.size()));
    ggml_backend_buffer_set_usage(buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    return buffer;
}

namespace {

/// Puts the types of a node's sources behind its name. A backend that keeps what it made of a graph (ggml's CUDA
/// graphs) looks at the nodes' own bytes and at their sources' addresses, shapes and strides, but not at these types: a
/// weight in q3_K and its stand-in in iq3_s (110 bytes for 256 weights both) at the same address look the same to it,
/// and the one would be read by the other's kernels.
void name_source_types(ggml_tensor& node) {
    std::string types;
    for (const auto* source : node.src)
        if (source != nullptr) types += fmt::format("{}{}", types.empty() ? '|' : ',', static_cast<int>(source->type));
    const auto kept = std::min(std::strlen(node.name), GGML_MAX_NAME - 1 - types.size());
    ggml_set_name(&node, (std::string(node.name, kept) + types).c_str());
}

}  // namespace

void ArenaGraph::seal() {
    sources.resize(static_cast<std::size_t>(ggml_graph_n_nodes(graph)));
    for (std::size_t i = 0; i < sources.size(); ++i) {
        auto* node = ggml_graph_node(graph, static_cast<int>(i));
        std::ranges::copy(node->src, sources[i].begin());
        name_source_types(*node);
    }
}

struct Device::State {
    std::string name = "CPU";
    // Backends use the pool, the scheduler and the arena use the backends: members go in reverse order.
    std::unique_ptr<ggml_threadpool, PoolFree> pool;
    Backend cpu;
    Backend accelerator;                                           // null on the CPU
    std::unique_ptr<ggml_gallocr, ArenaFree> arena;                // on the CPU
    std::unique_ptr<ggml_backend_sched, SchedulerFree> scheduler;  // elsewhere
    std::size_t scheduler_size = 0;                                // nodes that the scheduler has room for
    const ArenaGraph* current = nullptr;
    std::vector<bool> planned_outputs;  // by node of the graph that was placed last
    GgmlBuffer zeros;                   // to clear leafs with, in the order of what is computed
    AfterCompute after_compute;

    ggml_backend* main() const { return accelerator ? accelerator.get() : cpu.get(); }

    void make_scheduler(std::size_t n_nodes) {
        if (scheduler && n_nodes <= scheduler_size) return;
        scheduler_size = std::max<std::size_t>(2 * n_nodes, 4096);
        ggml_backend* backends[] = {accelerator.get(), cpu.get()};
        scheduler.reset();
        scheduler.reset(ggml_backend_sched_new(backends, nullptr, 2, scheduler_size, /*parallel=*/false,
                                               /*op_offload=*/false));
    }
};

Device::Device(int threads) : Device({}, threads) {}

Device::Device(const std::string& name, int threads) : threads_(threads), state_(std::make_unique<State>()) {
    auto params = ggml_threadpool_params_default(threads);
    state_->pool.reset(ggml_threadpool_new(&params));
    state_->cpu.reset(ggml_backend_cpu_init());
    if (!state_->pool || !state_->cpu) throw Error(fmt::format("cannot start {} threads for the CPU backend", threads));
    ggml_backend_cpu_set_n_threads(state_->cpu.get(), threads);
    ggml_backend_cpu_set_threadpool(state_->cpu.get(), state_->pool.get());
    if (auto* device = name.empty() || name == "CPU" ? nullptr : find_device(name);
        device != nullptr && !is_cpu(device)) {
        state_->name = name;
        state_->accelerator.reset(ggml_backend_dev_init(device, nullptr));
        if (!state_->accelerator) throw Error(fmt::format("the device {} cannot be used", name));
    } else {
        state_->arena.reset(ggml_gallocr_new(ggml_backend_get_default_buffer_type(state_->cpu.get())));
    }
    values_ = std::make_unique<ValueStore>(state_->main());
}

Device::~Device() = default;

std::string Device::kind_of(const std::string& name) {
    if (name.empty() || name == "CPU") return "CPU";
    if (name.find(':') != std::string::npos) return "RPC";
    auto* device = find_device(name);
    return is_cpu(device) ? "CPU" : ggml_backend_dev_description(device);
}

const std::string& Device::name() const {
    return state_->name;
}

std::size_t Device::free_bytes() const {
    std::size_t free = 0, total = 0;
    ggml_backend_dev_memory(ggml_backend_get_device(state_->main()), &free, &total);
    return free;
}

bool Device::is_host() const {
    return !state_->accelerator;
}

GgmlBuffer Device::allocate(ggml_context* context) {
    if (ggml_get_first_tensor(context) == nullptr) return nullptr;
    GgmlBuffer buffer(ggml_backend_alloc_ctx_tensors(context, state_->main()));
    if (!buffer)
        throw Error(fmt::format(
            "{} has not enough memory; use a smaller --ctx or set a memory limit below what is free", state_->name));
    return buffer;
}

void Device::place(ArenaGraph& graph) {
    if (state_->current == &graph) return;
    state_->current = nullptr;
    for (auto* tensor = ggml_get_first_tensor(graph.context.get()); tensor != nullptr;
         tensor = ggml_get_next_tensor(graph.context.get(), tensor)) {
        tensor->data = nullptr;
        tensor->buffer = nullptr;
    }
    // ggml keeps its plan of the memory for the next graph of the same shapes, whatever is to be kept of that one.
    std::vector<bool> outputs(static_cast<std::size_t>(ggml_graph_n_nodes(graph.graph)));
    for (std::size_t i = 0; i < outputs.size(); ++i)
        outputs[i] = (ggml_graph_node(graph.graph, static_cast<int>(i))->flags & GGML_TENSOR_FLAG_OUTPUT) != 0;
    const bool plan_anew = std::exchange(state_->planned_outputs, outputs) != outputs;
    bool placed = false;
    if (state_->accelerator) {
        state_->make_scheduler(static_cast<std::size_t>(ggml_graph_size(graph.graph)));
        const auto prepare = [&] {
            for (std::size_t i = 0; i < graph.sources.size(); ++i)
                std::ranges::copy(graph.sources[i], ggml_graph_node(graph.graph, static_cast<int>(i))->src);
            ggml_backend_sched_reset(state_->scheduler.get());
            for (auto* leaf : graph.leafs)
                ggml_backend_sched_set_tensor_backend(state_->scheduler.get(), leaf, state_->accelerator.get());
        };
        prepare();
        if (plan_anew && ggml_backend_sched_reserve(state_->scheduler.get(), graph.graph)) prepare();
        placed = ggml_backend_sched_alloc_graph(state_->scheduler.get(), graph.graph);
    } else {
        placed = (!plan_anew || ggml_gallocr_reserve(state_->arena.get(), graph.graph)) &&
                 ggml_gallocr_alloc_graph(state_->arena.get(), graph.graph);
    }
    if (!placed)
        throw Error(
            fmt::format("{} has not enough memory for the temporaries of a replay; use a smaller --ctx", state_->name));
    state_->current = &graph;
}

void Device::load(const StoredValue& value, ggml_tensor* leaf) {
    cerebellum::load(value, leaf, state_->main());
}

void Device::clear(ggml_tensor* leaf) {
    const auto size_bytes = ggml_nbytes(leaf);
    if (is_host()) {
        ggml_backend_tensor_memset(leaf, 0, 0, size_bytes);
        return;
    }
    auto& zeros = state_->zeros;
    if (!zeros || ggml_backend_buffer_get_size(zeros.get()) < size_bytes) {
        wait();
        zeros.reset(ggml_backend_alloc_buffer(state_->main(), size_bytes));
        if (!zeros)
            throw Error(
                fmt::format("{} has not enough memory for the caches of a replay; use a smaller --ctx", state_->name));
        ggml_backend_buffer_clear(zeros.get(), 0);
    }
    auto from = *leaf;
    from.view_src = nullptr;
    from.buffer = zeros.get();
    from.data = ggml_backend_buffer_get_base(zeros.get());
    ggml_backend_tensor_copy_async(state_->main(), state_->main(), &from, leaf);
}

void Device::wait() {
    ggml_backend_synchronize(state_->main());
}

void Device::watch(AfterCompute after_compute) {
    state_->after_compute = std::move(after_compute);
}

bool Device::is_watched() const {
    return static_cast<bool>(state_->after_compute);
}

void Device::compute(ArenaGraph& graph) {
    auto status = state_->accelerator ? ggml_backend_sched_graph_compute_async(state_->scheduler.get(), graph.graph)
                                      : ggml_backend_graph_compute(state_->cpu.get(), graph.graph);
    if (state_->after_compute) {
        wait();
        status = state_->after_compute(graph.graph, status);
    }
    if (status != GGML_STATUS_SUCCESS)
        throw FigureError(
            fmt::format("{} could not run a replay graph (ggml status {})", state_->name, static_cast<int>(status)));
}

void Device::forget(const ArenaGraph& graph) {
    if (state_->current != &graph) return;
    state_->current = nullptr;
    // The scheduler remembers tensors of the graph.
    if (state_->scheduler) ggml_backend_sched_reset(state_->scheduler.get());
}

}  // namespace cerebellum
