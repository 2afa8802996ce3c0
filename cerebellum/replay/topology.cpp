#include "cerebellum/replay/topology.h"

#include <algorithm>
#include <charconv>
#include <string_view>

namespace cerebellum {

namespace {

/// N of a weight called "blk.N.…", -1 for any other name.
int block_number(std::string_view name) {
    constexpr std::string_view prefix = "blk.";
    if (!name.starts_with(prefix)) return -1;
    name.remove_prefix(prefix.size());
    int number = -1;
    const auto [end, status] = std::from_chars(name.data(), name.data() + name.size(), number);
    return status == std::errc{} && end != name.data() + name.size() && *end == '.' ? number : -1;
}

}  // namespace

bool WeightUse::read_within(int begin, int end) const {
    const auto node = std::ranges::lower_bound(nodes, begin);
    return node != nodes.end() && *node < end;
}

Topology::Topology(const RecordedGraph& graph) : graph_(&graph) {
    const auto n_tensors = graph.tensors.size();
    last_read_.assign(n_tensors, -1);
    first_write_.assign(n_tensors, graph.n_nodes);
    for (int node = 0; node < graph.n_nodes; ++node) {
        const auto& tensor = graph.tensors[static_cast<std::size_t>(node)];
        const bool view = RecordedGraph::is_view_operation(tensor.op);
        if (!view) {
            auto& first = first_write_[static_cast<std::size_t>(graph.root(node))];
            first = std::min(first, node);
        }
        const auto read = [&](int source) {
            if (source < 0) return;
            const int root = graph.root(source);
            // A view computes nothing, but whoever reads it later names the root too, so counting it changes no live
            // set except that it keeps the node itself constructible.
            last_read_[static_cast<std::size_t>(root)] = std::max(last_read_[static_cast<std::size_t>(root)], node);
            const auto& leaf = graph.tensors[static_cast<std::size_t>(root)];
            if (leaf.kind != TensorKind::weight) return;
            auto& use = weights_.try_emplace(leaf.name, WeightUse{node, node, {}}).first->second;
            use.last = node;
            use.nodes.push_back(node);
        };
        for (const int source : tensor.sources) read(source);
        read(tensor.view_of);
    }

    // Blocks in execution order with the range of nodes that read their weights.
    std::map<int, WeightUse> blocks;
    int behind_blocks = graph.n_nodes;
    for (const auto& [name, use] : weights_) {
        const int number = block_number(name);
        if (number < 0) continue;
        const auto [entry, added] = blocks.try_emplace(number, use);
        entry->second.first = std::min(entry->second.first, use.first);
        entry->second.last = std::max(entry->second.last, use.last);
    }
    std::vector<std::pair<int, WeightUse>> ordered(blocks.begin(), blocks.end());
    std::ranges::sort(ordered, {}, [](const auto& block) { return block.second.first; });
    if (ordered.empty()) return;
    const int last_block_use = ordered.back().second.last;
    int previous_last = -1;
    for (const auto& [name, use] : weights_) {
        if (block_number(name) >= 0) continue;
        // A tied embedding is read on both sides.
        const auto behind = std::ranges::upper_bound(use.nodes, last_block_use);
        if (behind != use.nodes.end()) behind_blocks = std::min(behind_blocks, *behind);
        const auto inside = std::ranges::lower_bound(use.nodes, ordered.front().second.first);
        if (inside != use.nodes.begin()) previous_last = std::max(previous_last, *(inside - 1));
    }
    for (const auto& [number, use] : ordered) {
        const int begin = best_cut(previous_last + 1, use.first);
        if (!layers_.empty()) layers_.back().end = begin;
        layers_.push_back({number, begin, begin});
        previous_last = std::max(previous_last, use.last);
    }
    layers_.back().end = best_cut(last_block_use + 1, behind_blocks);
}

int Topology::best_cut(int from, int to) const {
    int best = to;
    std::size_t best_bytes = live_bytes(to);
    for (int cut = to - 1; cut >= from; --cut) {
        if (const auto bytes = live_bytes(cut); bytes < best_bytes) {
            best = cut;
            best_bytes = bytes;
        }
    }
    return best;
}

std::vector<int> Topology::live_set(int cut) const {
    std::vector<int> roots;
    for (std::size_t root = 0; root < graph_->tensors.size(); ++root) {
        const auto& tensor = graph_->tensors[root];
        if (tensor.view_of >= 0 || tensor.kind == TensorKind::weight || tensor.kind == TensorKind::input) continue;
        if (first_write_[root] < cut && last_read_[root] >= cut) roots.push_back(static_cast<int>(root));
    }
    return roots;
}

std::size_t Topology::live_bytes(int cut) const {
    std::size_t bytes = 0;
    for (const int root : live_set(cut)) bytes += graph_->tensors[static_cast<std::size_t>(root)].size_bytes();
    return bytes;
}

bool Topology::only_looked_up(const std::string& weight) const {
    const auto use = weights_.find(weight);
    return use != weights_.end() && std::ranges::all_of(use->second.nodes, [this](int node) {
               return graph_->tensors[static_cast<std::size_t>(node)].op == GGML_OP_GET_ROWS;
           });
}

bool Topology::takes_any_type(const std::string& weight) const {
    const auto use = weights_.find(weight);
    return use != weights_.end() && std::ranges::all_of(use->second.nodes, [&](int index) {
               const auto& node = graph_->tensors[static_cast<std::size_t>(index)];
               if (RecordedGraph::is_view_operation(node.op)) return true;  // whoever reads the view is listed too
               const bool has_kernels =
                   node.op == GGML_OP_MUL_MAT || node.op == GGML_OP_MUL_MAT_ID || node.op == GGML_OP_GET_ROWS;
               for (std::size_t i = has_kernels ? 1 : 0; i < node.sources.size(); ++i) {
                   if (node.sources[i] < 0) continue;
                   const auto& source = graph_->tensors[static_cast<std::size_t>(graph_->root(node.sources[i]))];
                   if (source.kind == TensorKind::weight && source.name == weight) return false;
               }
               return true;
           });
}

std::vector<int> Topology::cuts() const {
    std::vector<int> result = {0};
    for (const auto& layer : layers_) result.push_back(layer.begin);
    result.push_back(head_cut());
    result.push_back(n_nodes());
    result.erase(std::unique(result.begin(), result.end()), result.end());
    return result;
}

int Topology::span_of(const std::string& weight) const {
    const auto& use = weights_.at(weight);
    if (layers_.empty() || use.first < layers_.front().begin) return -1;
    for (std::size_t i = 0; i < layers_.size(); ++i)
        if (use.first < layers_[i].end) return static_cast<int>(i);
    return static_cast<int>(layers_.size());
}

}  // namespace cerebellum
