#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "cerebellum/replay/device.h"
#include "cerebellum/replay/topology.h"
#include "cerebellum/replay/value_store.h"
#include "cerebellum/replay/weight_store.h"

namespace cerebellum {

/// Contents of the live set at one cut, by root tensor. Copies share memory.
struct LiveState {
    std::map<int, Value> values;
};
std::size_t size_bytes(const LiveState& state);

/// Contents of the graph's input leafs for one window, by tensor index.
using InputValues = std::map<int, Value>;

/// A weight's stand-in: the same shape in another type. The data must live as long as the slice: on the CPU it is used
/// where it lies.
struct Substitute {
    ggml_type type = GGML_TYPE_COUNT;
    std::span<const std::byte> data;
    /// Where not empty, only these rows of every matrix of the weight are changed, ascending, and `data` holds just
    /// them; the others stay the source's. Only for weights that Slice::can_change_rows.
    std::span<const std::int64_t> rows = {};
};
/// By weight name. A name stands for every use of the weight.
using Substitutions = std::map<std::string, Substitute>;

struct ScatteredRows;

/// The nodes [begin, end) of a recorded graph as a runnable graph of our own. What crosses the cut at `begin` comes
/// from a LiveState, weights are the model's own or substitutes, caches and recurrent states start from zero or from
/// the live state. Holds the weights that it reads in place. The device, the topology, the weights' store and the model
/// must outlive it. Not thread-safe.
class Slice {
  public:
    /// Nodes of a caller's own behind the range's.
    struct Tail {
        std::vector<ggml_tensor*> inputs;   // leafs that run() is given values for
        std::vector<ggml_tensor*> outputs;  // for keep_tail()
    };
    /// The slice's own tensor for one of the recorded graph, null where it has none.
    using Clone = std::function<ggml_tensor*(int)>;

    struct Options {
        Substitutions substitutes;
        std::vector<int> reads;  // nodes of the range, or sources of such, that read() may be asked for
        /// What a product with some rows substituted gives in the source is no part of the graph but comes with the
        /// live state given to run(), under the product's node: other rows then cost nothing.
        bool unchanged_rows_given = false;
        std::function<Tail(ggml_context*, const Clone&)> tail;
    };

    Slice(const Topology& topology, Device& device, WeightStore& weights, int begin, int end, const Options& options);
    ~Slice();
    Slice(const Slice&) = delete;
    Slice& operator=(const Slice&) = delete;

    /// Whether single rows of a weight can be substituted: it is only multiplied with as a whole or looked up row by
    /// row. A row that is looked up must be among those substituted.
    static bool can_change_rows(const Topology& topology, const std::string& weight);

    /// Computes the range for one window. Devices other than the CPU may still be at work when it returns.
    void run(const InputValues& inputs, const LiveState& in, std::span<const Value> tail_inputs = {});
    /// The live set at `end` after run(); what merely passes through is shared with `in`.
    LiveState live_out(const LiveState& in) const;
    /// Whether a tensor of the live set at `end` is written in the range.
    bool writes(int root) const { return written_.contains(root); }
    /// Content of one of Options::reads after run().
    std::vector<std::byte> read(int node) const;
    /// Contents of Tail::outputs after run(), by output. Nothing waits for the device until they are read.
    std::vector<Value> keep_tail() const;
    /// Its nodes, as the device gets them.
    const ggml_cgraph* nodes() const { return graph_.graph; }

  private:
    ggml_tensor* map(int index);
    ggml_tensor* make(ggml_context* context, const RecordedTensor& recorded) const;
    ggml_tensor* map_weight(const RecordedTensor& recorded);
    ggml_tensor* map_substitute(const RecordedTensor& recorded, const Substitute& substitute, bool on_host);
    ggml_tensor* map_view(int index);
    ggml_tensor* map_node(int index);
    const Substitute* rows_substituted_in(const RecordedTensor& node) const;
    ggml_tensor* map_product_of_rows(int index, const Substitute& substitute);
    ggml_tensor* map_lookup_of_rows(int index, const Substitute& substitute);
    ggml_tensor* add_leaf(int index);
    template <typename Index>
    ggml_tensor* add_constant(ggml_type type, std::vector<Index> values, std::int64_t row_length, bool on_host);
    void place_substitutes();

    const Topology* topology_;
    Device* device_;
    WeightStore* store_;
    int begin_;
    ArenaGraph graph_;         // everything computed and every leaf but the weights
    GgmlContext substituted_;  // substitutes in the device's memory
    GgmlContext host_;         // substitutes used where the caller has them
    GgmlBuffer substituted_buffer_;
    std::vector<GgmlBuffer> host_buffers_;
    /// Indices of substituted rows, in the graph's terms.
    struct Constant {
        GgmlContext context;
        GgmlBuffer buffer;
    };
    std::vector<Constant> constants_;
    std::vector<std::unique_ptr<ScatteredRows>> scattered_;
    std::vector<PlacedWeight> placed_;
    std::map<int, ggml_tensor*> mapped_;
    std::vector<std::pair<int, ggml_tensor*>> leafs_;  // by index in the recorded graph
    Substitutions substitutes_;
    bool unchanged_rows_given_;
    std::vector<int> live_in_;   // sorted
    std::vector<int> live_out_;  // sorted
    std::set<int> written_;      // of live_out_
    Tail tail_;
};

}  // namespace cerebellum
