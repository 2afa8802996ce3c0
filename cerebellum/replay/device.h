#pragma once

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml.h>

#include <array>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cerebellum/replay/value_store.h"

namespace cerebellum {

struct GgmlContextFree {
    void operator()(ggml_context* context) const { ggml_free(context); }
};
using GgmlContext = std::unique_ptr<ggml_context, GgmlContextFree>;

/// A ggml context for `n_tensors` tensors without data.
GgmlContext make_tensor_context(std::size_t n_tensors, std::size_t graph_nodes = 0);

/// Host memory of somebody else's as a buffer of weights.
GgmlBuffer wrap_host_memory(std::span<const std::byte> bytes);

/// A graph whose nodes, and whose leafs without memory of their own, live in a device's arena.
struct ArenaGraph {
    GgmlContext context;  // of the graph, its nodes and the leafs that live in the arena
    ggml_cgraph* graph = nullptr;
    std::vector<ggml_tensor*> leafs;  // those in the arena

    /// To be called once when the graph is complete. Names of nodes tell the types of their sources from then on.
    void seal();

    // Sources of every node: ggml's scheduler puts copies in their place.
    std::vector<std::array<ggml_tensor*, GGML_MAX_SRC>> sources;
};

/// A ggml device that replays run on, with the CPU behind it for operations that it lacks, and one arena of temporary
/// memory, which all graphs share: only the graph that was placed last has its tensors there. Not thread-safe.
class Device {
  public:
    /// The CPU with a pool of `threads` threads of its own.
    explicit Device(int threads);
    /// "CPU" or empty: the CPU. "host:port": a ggml RPC server. Anything else: the device that ggml calls so ("CUDA0",
    /// "Vulkan0", …). Throws UsageError naming the devices there are, Error where the device cannot be used.
    Device(const std::string& name, int threads);
    ~Device();
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;

    const std::string& name() const;
    /// What does the arithmetic behind a device's name, for example "NVIDIA H200": figures made on two devices of a
    /// kind may be compared. Throws as the constructor does.
    static std::string kind_of(const std::string& name);
    /// Bytes that it has free, as it says itself.
    std::size_t free_bytes() const;
    /// Whether this is the CPU: tensors' data can be read where it lies, graphs may hold custom operations, and what it
    /// computes is bit-identical to llama_decode.
    bool is_host() const;
    int threads() const { return threads_; }

    /// Memory for all tensors of a context that have none yet. Throws Error where the device has not enough.
    GgmlBuffer allocate(ggml_context* context);
    /// Gives the graph's tensors their places in the arena, if another graph was placed in between. Leafs have no
    /// defined content then, nor after compute().
    void place(ArenaGraph& graph);
    /// Fill a leaf of the graph placed last, behind all that is being computed.
    void load(const StoredValue& value, ggml_tensor* leaf);
    void clear(ggml_tensor* leaf);
    /// Begins to run the graph placed last; its results are there after wait(). Throws FigureError where the device
    /// says that it could not.
    void compute(ArenaGraph& graph);
    /// For tests: called when a graph has been computed, to change what came of it, and what the device says.
    using AfterCompute = std::function<ggml_status(ggml_cgraph*, ggml_status)>;
    void watch(AfterCompute after_compute);
    bool is_watched() const;
    /// Until the device has done all it was asked to.
    void wait();
    /// Must be called before a graph that was placed here is destroyed.
    void forget(const ArenaGraph& graph);

    ValueStore& values() { return *values_; }

  private:
    struct State;
    int threads_;
    std::unique_ptr<State> state_;
    std::unique_ptr<ValueStore> values_;
};

}  // namespace cerebellum
