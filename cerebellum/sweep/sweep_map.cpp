#include "cerebellum/sweep/sweep_map.h"

#include <algorithm>

namespace cerebellum {

SweepMap::SweepMap(const Topology& topology) : topology_(&topology) {
    const auto cuts = topology.cuts();
    for (std::size_t c = 0; c + 2 < cuts.size(); ++c) ranges_.push_back({cuts[c], cuts[c + 1]});
}

std::optional<SweepMap::Place> SweepMap::place_of(const std::string& tensor) const {
    const auto use = topology_->weights().find(tensor);
    if (use == topology_->weights().end() || !topology_->takes_any_type(tensor)) return std::nullopt;
    Place place;
    place.use = &use->second;
    place.range = static_cast<std::size_t>(
        std::ranges::find_if(ranges_, [&](const SweepRange& range) { return place.use->first < range.end; }) -
        ranges_.begin());
    for (const auto& known : topology_->graph().tensors)
        if (known.kind == TensorKind::weight && known.name == tensor) {
            place.weights = 1.0;
            for (const auto n : known.shape) place.weights *= static_cast<double>(n);
            place.columns = static_cast<double>(known.shape[0]);
        }
    place.local =
        topology_->span_of(tensor) >= 0 && place.range < ranges_.size() && place.use->last < ranges_[place.range].end;
    return place;
}

double SweepMap::flops(int begin, int end) const {
    double sum = 0.0;
    const auto& graph = topology_->graph();
    for (int i = begin; i < end; ++i) {
        const auto& node = graph.tensors[static_cast<std::size_t>(i)];
        if (node.op != GGML_OP_MUL_MAT && node.op != GGML_OP_MUL_MAT_ID) continue;
        double elements = 1.0;
        for (const auto n : node.shape) elements *= static_cast<double>(n);
        sum += 2.0 * elements * static_cast<double>(graph.tensors[static_cast<std::size_t>(node.sources[0])].shape[0]);
    }
    return sum;
}

double SweepMap::cost(int begin, int end) const {
    return flops(begin, std::max(begin, end)) + 1.0;
}

double SweepMap::fast_cost(const Place& place) const {
    return cost(place.use->first, place.local ? ranges_[place.range].end : 0);
}

double SweepMap::full_cost(const Place& place) const {
    return cost(place.use->first, topology_->n_nodes());
}

}  // namespace cerebellum
