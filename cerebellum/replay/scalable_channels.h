#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cerebellum/replay/topology.h"

namespace cerebellum {

/// Channels that a model's graph lets us scale without changing what it computes: everything that reads them is a
/// matrix whose columns can take the factor, and between these and the weight that makes the channels every operation
/// treats channels one by one and is linear in them.
struct ScalableChannels {
    std::string producer;              ///< a norm's vector, or a matrix whose rows make the channels
    std::vector<std::string> offsets;  ///< vectors that are added behind it
    std::vector<std::string> readers;  ///< matrices (also of experts) whose columns read them
    std::int64_t n_channels = 0;
    int first = 0;  ///< node that reads the producer
    int last = 0;   ///< last node that reads one of the readers
};

/// All such places of a recorded graph, found from its operations and not from names, in the order of execution. A
/// weight that is read in several places, or stored quantized, takes part in none.
std::vector<ScalableChannels> find_scalable_channels(const Topology& topology);

}  // namespace cerebellum
