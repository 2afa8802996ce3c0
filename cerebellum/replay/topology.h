#pragma once

#include <map>
#include <string>
#include <vector>

#include "cerebellum/llama/recorded_graph.h"

namespace cerebellum {

/// Where a weight is read in the graph, as node positions.
struct WeightUse {
    int first = 0;
    int last = 0;
    std::vector<int> nodes;  // all of them, ascending

    bool read_within(int begin, int end) const;
};

/// A range of nodes that reads the weights of one block of the model.
struct LayerSpan {
    int layer = 0;  // the number in "blk.N."
    int begin = 0;
    int end = 0;
};

/// What can be read off a recorded graph: where weights are used, where it can be cut, what crosses a cut.
/// A cut at position c separates the nodes [0, c) from [c, n_nodes). Immutable; the graph must outlive it.
class Topology {
  public:
    explicit Topology(const RecordedGraph& graph);

    const RecordedGraph& graph() const { return *graph_; }
    int n_nodes() const { return graph_->n_nodes; }
    /// Weights by name. A weight that several leafs stand for (tied embeddings) is listed once.
    const std::map<std::string, WeightUse>& weights() const { return weights_; }

    /// Whether every use of a weight fetches rows of it and multiplies nothing: an embedding that is not tied.
    bool only_looked_up(const std::string& weight) const;
    /// Whether ggml can compute with the weight in any type: every use multiplies by it as a matrix or fetches rows of
    /// it. Other operations (an element-wise product) have no kernels for quantized types, and ggml ends the program
    /// there. llama-quantize goes by names alone and quantizes some such tensors nevertheless.
    bool takes_any_type(const std::string& weight) const;

    /// Tensors (roots) whose content, produced before the cut, is read behind it: the live set. Cache and state
    /// contents written before and read behind the cut belong to it.
    std::vector<int> live_set(int cut) const;
    std::size_t live_bytes(int cut) const;

    /// The blocks in execution order. begin of each is the cut with the smallest live set between the last use of the
    /// previous block's weights and the first use of its own; end is the next one's begin.
    const std::vector<LayerSpan>& layers() const { return layers_; }
    /// The cut behind the last block, in front of the final norm and the head.
    int head_cut() const { return layers_.empty() ? 0 : layers_.back().end; }
    /// Where to cut the whole graph into one slice per block: 0, the blocks' begins, the head cut, n_nodes();
    /// ascending, without repetitions.
    std::vector<int> cuts() const;
    /// The span that a weight belongs to, by where it is read; -1 in front of the first block, layers().size() behind
    /// the last one.
    int span_of(const std::string& weight) const;

  private:
    int best_cut(int from, int to) const;

    const RecordedGraph* graph_;
    std::map<std::string, WeightUse> weights_;
    std::vector<int> last_read_;    // per root: last node that reads it, -1 if none
    std::vector<int> first_write_;  // per root: first node that produces or writes it, n_nodes if none
    std::vector<LayerSpan> layers_;
};

}  // namespace cerebellum
