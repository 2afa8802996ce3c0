#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cerebellum/replay/device.h"
#include "cerebellum/replay/topology.h"

namespace cerebellum {

using Bytes = std::shared_ptr<const std::vector<std::byte>>;

/// Contents of the live set at one cut, by root tensor. Copies share memory.
struct LiveState {
    std::map<int, Bytes> values;
};

/// A weight's stand-in: the same shape in another type.
struct Substitute {
    ggml_type type = GGML_TYPE_COUNT;
    std::span<const std::byte> data;
};
/// By weight name. A name stands for every use of the weight.
using Substitutions = std::map<std::string, Substitute>;

/// The nodes [begin, end) of a recorded graph as a runnable graph of our own. What crosses the cut at `begin` comes
/// from a LiveState, weights are the model's own or substitutes, caches and recurrent states start from zero or from
/// the live state. The device, the topology and the model must outlive it. Not thread-safe.
class Slice {
  public:
    struct Options {
        Substitutions substitutes;  // copied into device memory on construction
        std::vector<int> reads;     // nodes of the range, or sources of such, that read() may be asked for
        /// Appends nodes to the graph behind the clone of RecordedGraph::logits; the last one is kept for read_tail().
        std::function<ggml_tensor*(ggml_context*, ggml_tensor* logits)> tail;
    };

    Slice(const Topology& topology, Device& device, int begin, int end, const Options& options);
    ~Slice();
    Slice(const Slice&) = delete;
    Slice& operator=(const Slice&) = delete;

    /// Computes the range for one window.
    void run(const WindowInputs& inputs, const LiveState& in);
    /// The live set at `end` after run(); what merely passes through is shared with `in`.
    LiveState live_out(const LiveState& in) const;
    /// Content of one of Options::reads after run().
    std::vector<std::byte> read(int node) const;
    /// Content of the tail's last node after run().
    std::vector<std::byte> read_tail() const;

  private:
    ggml_tensor* map(int index);
    ggml_tensor* make(ggml_context* context, const RecordedTensor& recorded, bool with_strides) const;
    ggml_tensor* map_substitute(int index, const Substitute& substitute);
    ggml_tensor* map_view(int index);

    const Topology* topology_;
    Device* device_;
    int begin_;
    int end_;
    GgmlContext leafs_;    // inputs, states and live values: memory of our own
    GgmlContext weights_;  // substitutes
    GgmlContext nodes_;    // everything computed: lives in the device's arena
    GgmlBuffer leaf_buffer_;
    GgmlBuffer weight_buffer_;
    std::map<int, ggml_tensor*> mapped_;
    std::vector<int> leaf_indices_;
    Substitutions substitutes_;
    std::vector<int> live_in_;  // sorted
    ggml_cgraph* graph_ = nullptr;
    ggml_tensor* tail_ = nullptr;
};

}  // namespace cerebellum
