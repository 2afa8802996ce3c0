#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "cerebellum/replay/topology.h"

namespace cerebellum {

/// Part of the graph between neighbouring cuts: a block, or what is in front of the first one.
struct SweepRange {
    int begin = 0;
    int end = 0;
};

/// Where the changes of a tensor are measured, and what replaying them takes: a pure function of the graph. The
/// topology must outlive it. Costs are in multiply-adds × 2 of matrix products, for one window.
class SweepMap {
  public:
    explicit SweepMap(const Topology& topology);

    struct Place {
        const WeightUse* use = nullptr;
        std::size_t range = 0;  // that first reads the tensor; ranges().size(): the head
        bool local = false;     // read in one block only, whose output shows the change
        double weights = 0.0;   // that it has
        double columns = 0.0;   // of its matrices
    };
    /// None where nothing reads the tensor, or nothing that takes any type.
    std::optional<Place> place_of(const std::string& tensor) const;

    /// The body's, in order of execution.
    const std::vector<SweepRange>& ranges() const { return ranges_; }

    /// Of a range of nodes.
    double flops(int begin, int end) const;
    /// The same, but never nothing, and one at least where the range is empty: a unit of progress.
    double cost(int begin, int end) const;
    /// Of replaying a change to the end of its block, and to the end of the model.
    double fast_cost(const Place& place) const;
    double full_cost(const Place& place) const;

  private:
    const Topology* topology_;
    std::vector<SweepRange> ranges_;
};

}  // namespace cerebellum
