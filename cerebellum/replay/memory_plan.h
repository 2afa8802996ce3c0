#pragma once

#include <cstddef>
#include <filesystem>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "cerebellum/replay/topology.h"

namespace cerebellum {

/// What the user allows; 0 for no limit.
struct MemoryLimits {
    std::size_t host_bytes = 0;
    std::size_t device_bytes = 0;          // of a device with memory of its own
    std::filesystem::path scratch_folder;  // for states that fit in neither; empty: the system's temporary folder
};

/// What replays of a model need.
struct MemoryNeeds {
    std::vector<std::size_t> range_bytes;  // weights read between neighbouring cuts
    std::size_t weight_bytes = 0;          // all weights, each once
    std::size_t largest_weight_bytes = 0;  // the largest tensor, for quantizing it
    std::size_t temporary_bytes = 0;       // of the largest graph, the reference's probabilities included
    std::size_t state_bytes = 0;           // live set of one window at the widest cut between blocks
    int n_windows = 1;
};

MemoryNeeds memory_needs(const Topology& topology, int n_windows);

/// How the memory is used.
struct MemoryPlan {
    static constexpr std::size_t unlimited = std::numeric_limits<std::size_t>::max();

    bool resident = true;                        // all weights stay where they are computed with
    std::size_t weight_bytes = unlimited;        // for weights where they are computed with
    std::size_t device_value_bytes = unlimited;  // for states between replays, in the device's memory
    std::size_t host_value_bytes = unlimited;    // and in host memory; beyond that they go to the scratch file
    std::size_t wave_bytes = 0;                  // states and heads of the variants that travel together
    MemoryNeeds needs;
};

/// Pure. Throws Error naming the least that would do where a limit is too small. `device_is_host`: the device computes
/// in host memory, so that there is but one limit.
MemoryPlan plan_memory(const MemoryNeeds& needs, const MemoryLimits& limits, bool device_is_host);

/// Which of several devices each range runs on, neighbouring ones on the same as far as may be: the first device has
/// the last ranges, the head among them, the second one those in front of them, and so on. Weights are divided as the
/// capacities are. Pure.
std::vector<std::size_t> spread_ranges(std::span<const std::size_t> range_bytes,
                                       std::span<const std::size_t> capacities);

std::string describe(const MemoryPlan& plan);

}  // namespace cerebellum
