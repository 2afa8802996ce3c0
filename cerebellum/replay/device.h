#pragma once

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml.h>

#include <memory>

namespace cerebellum {

struct GgmlContextFree {
    void operator()(ggml_context* context) const { ggml_free(context); }
};
struct GgmlBufferFree {
    void operator()(ggml_backend_buffer* buffer) const { ggml_backend_buffer_free(buffer); }
};
using GgmlContext = std::unique_ptr<ggml_context, GgmlContextFree>;
using GgmlBuffer = std::unique_ptr<ggml_backend_buffer, GgmlBufferFree>;

/// A ggml context for `n_tensors` tensors without data.
GgmlContext make_tensor_context(std::size_t n_tensors, std::size_t graph_nodes = 0);

/// A ggml backend with one arena of temporary memory, which all graphs run on it share: only the graph that ran last
/// has its temporaries in place. Not thread-safe.
class Device {
  public:
    /// The CPU with a pool of `threads` threads of its own.
    explicit Device(int threads);
    ~Device();
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;

    /// Memory for all tensors of a context that have none yet. Throws Error where the device has not enough.
    GgmlBuffer allocate(ggml_context* context);
    /// Runs the graph. `nodes` holds the tensors that live in the arena; they are placed anew when another graph ran in
    /// between.
    void compute(ggml_cgraph* graph, ggml_context* nodes);
    /// Must be called before a graph that ran here is destroyed.
    void forget(const ggml_cgraph* graph);
    int threads() const { return threads_; }

  private:
    struct State;
    int threads_;
    std::unique_ptr<State> state_;
};

}  // namespace cerebellum
