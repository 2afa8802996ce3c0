#pragma once

#include <span>
#include <vector>

#include "cerebellum/replay/slice.h"

namespace cerebellum {

/// Measures how much a variant's live set at the end of one slice differs from the source's, where it is computed.
/// The topology must outlive it.
class ChangeProbe {
  public:
    explicit ChangeProbe(const Topology& topology) : topology_(&topology) {}

    /// For Slice::Options::tail of a slice that ends at `cut`.
    Slice::Tail append(int cut, ggml_context* context, const Slice::Clone& clone);
    /// For Slice::run: from the source's live set at the cut.
    std::vector<Value> inputs(const LiveState& source) const;
    /// From Slice::keep_tail: Σ of ‖h′ − h‖² / ‖h‖² over the tokens from `first` on, the last one left out because
    /// nothing is predicted after it. Normalised per token because a few sink tokens carry most of the energy in real
    /// models.
    double relative_energy(std::span<const Value> tail, int first) const;

  private:
    struct Part {
        int root;
        bool per_token;
    };
    const Topology* topology_;
    std::vector<Part> parts_;
};

}  // namespace cerebellum
