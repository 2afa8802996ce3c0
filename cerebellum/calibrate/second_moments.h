#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "cerebellum/core/progress.h"
#include "cerebellum/replay/engine.h"

namespace cerebellum {

/// The input of one weight: where its second moments are found. Weights with the same input share them.
struct InputMoments {
    std::string input;            ///< name of the first weight with this input
    std::int64_t n_cols = 0;      ///< length of an input
    std::int64_t n_matrices = 1;  ///< matrices of the weight, each with moments of its own (a mixture's experts)
};

/// Where moments go as they come, and which are there already.
class MomentSink {
  public:
    virtual ~MomentSink() = default;
    virtual bool has(const std::string& input, std::int64_t matrix) const = 0;
    /// Lower triangle of Σ x xᵀ over all inputs, row by row: n_cols·(n_cols + 1)/2 values, zero for an expert that no
    /// token was routed to.
    virtual void put(const std::string& input, std::int64_t matrix, std::span<const float> lower_triangle) = 0;
};

/// The inputs of those of the weights that are multiplied with activations, by weight. Read off the graph.
std::map<std::string, InputMoments> find_inputs(const Topology& topology, const std::set<std::string>& weights);

/// Σ x xᵀ of the inputs, over all tokens of the windows, from a replay of the source; what the sink has is not made
/// again. At most `memory_bytes` of sums (or one matrix) are held; where a block has more, it is replayed several
/// times. Deterministic whatever `threads` is. On a device the sums of dense inputs are made there, where they fit.
void collect_second_moments(ReplayEngine& engine, std::span<const Window> windows,
                            const std::map<std::string, InputMoments>& inputs, std::uint64_t memory_bytes, int threads,
                            MomentSink& sink, Progress& progress);

}  // namespace cerebellum
