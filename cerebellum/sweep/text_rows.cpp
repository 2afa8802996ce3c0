#include "cerebellum/sweep/text_rows.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace cerebellum {

namespace {

const RecordedTensor& tensor_of(const Topology& topology, int index) {
    return topology.graph().tensors[static_cast<std::size_t>(index)];
}

bool makes_logits(const Topology& topology, int node) {
    return tensor_of(topology, node).op == GGML_OP_MUL_MAT && node == topology.graph().logits;
}

/// What a row is looked up by where a node does so with an input of the graph; -1 where it does not.
int looked_up_by(const Topology& topology, int node) {
    const auto& reader = tensor_of(topology, node);
    if (reader.op != GGML_OP_GET_ROWS) return -1;
    return tensor_of(topology, reader.sources[1]).kind == TensorKind::input ? reader.sources[1] : -1;
}

}  // namespace

bool reads_text_by_rows(const Topology& topology, const std::string& weight) {
    return Slice::can_change_rows(topology, weight) &&
           std::ranges::all_of(topology.weights().at(weight).nodes, [&](int node) {
               return makes_logits(topology, node) || looked_up_by(topology, node) >= 0;
           });
}

std::vector<std::int64_t> text_rows(const Topology& topology, const std::string& weight,
                                    std::span<const Window> windows, std::span<const double> mass, double neglected) {
    const auto& use = topology.weights().at(weight);
    const auto& reader = tensor_of(topology, use.first);
    const auto n_rows = static_cast<std::size_t>(tensor_of(topology, reader.sources[0]).shape[1]);
    std::vector<bool> needed(n_rows);
    for (const int node : use.nodes) {
        if (const int ids = looked_up_by(topology, node); ids >= 0) {
            for (const auto& window : windows) {
                const auto bytes = read(*window.inputs.at(ids));
                std::vector<std::int32_t> values(bytes.size() / sizeof(std::int32_t));
                std::memcpy(values.data(), bytes.data(), bytes.size());
                for (const auto id : values) needed.at(static_cast<std::size_t>(id)) = true;
            }
            continue;
        }
        if (mass.size() != n_rows) return {};
        std::vector<std::size_t> order(n_rows);
        std::iota(order.begin(), order.end(), std::size_t{0});
        std::ranges::stable_sort(order, std::greater<>{}, [&](std::size_t row) { return mass[row]; });
        double left = std::accumulate(mass.begin(), mass.end(), 0.0);
        const double most_left = neglected * left;
        for (const auto row : order) {
            if (left <= most_left) break;
            needed[row] = true;
            left -= mass[row];
        }
    }
    std::vector<std::int64_t> rows;
    for (std::size_t row = 0; row < n_rows; ++row)
        if (needed[row]) rows.push_back(static_cast<std::int64_t>(row));
    if (2 * rows.size() > n_rows) rows.clear();
    return rows;
}

}  // namespace cerebellum
