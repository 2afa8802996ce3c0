#include "cerebellum/replay/scalable_channels.h"

#include <algorithm>
#include <set>

namespace cerebellum {

namespace {

class Finder {
  public:
    explicit Finder(const Topology& topology) : topology_(topology), graph_(topology.graph()) {
        consumers_.resize(graph_.tensors.size());
        for (int node = 0; node < graph_.n_nodes; ++node) {
            std::set<int> read;
            for (const int source : at(node).sources)
                if (source >= 0) read.insert(source);
            if (at(node).view_of >= 0) read.insert(at(node).view_of);
            for (const int source : read) consumers_[static_cast<std::size_t>(source)].push_back(node);
        }
    }

    std::vector<ScalableChannels> all() {
        std::vector<ScalableChannels> result;
        std::set<int> seen;
        for (int node = 0; node < graph_.n_nodes; ++node) {
            if (!multiplies(node)) continue;
            int channels = at(node).sources[1];
            while (keeps_channels(channels)) channels = at(channels).sources[0];
            if (!seen.insert(channels).second) continue;
            ScalableChannels found;
            found.n_channels = at(channels).shape[0];
            if (collect_readers(channels, found) && find_producer(channels, found)) result.push_back(std::move(found));
        }
        std::ranges::sort(result, {}, &ScalableChannels::first);
        return result;
    }

  private:
    const RecordedTensor& at(int index) const { return graph_.tensors[static_cast<std::size_t>(index)]; }

    static std::int64_t n_values(const RecordedTensor& tensor) {
        return tensor.shape[0] * tensor.shape[1] * tensor.shape[2] * tensor.shape[3];
    }

    /// A weight that can be scaled: read once, and stored in floating-point numbers.
    bool is_free_weight(int index) const {
        if (index < 0 || at(index).kind != TensorKind::weight) return false;
        if (ggml_is_quantized(at(index).type)) return false;
        const auto use = topology_.weights().find(at(index).name);
        return use != topology_.weights().end() && use->second.nodes.size() == 1;
    }

    bool multiplies(int node) const {
        const auto& tensor = at(node);
        return (tensor.op == GGML_OP_MUL_MAT || tensor.op == GGML_OP_MUL_MAT_ID) && is_free_weight(tensor.sources[0]) &&
               at(tensor.sources[1]).kind == TensorKind::node;
    }

    /// Whether a node has all of its source's values, and channels where the source has them.
    bool keeps_channels(int node) const {
        const auto& tensor = at(node);
        if (tensor.kind != TensorKind::node || tensor.sources[0] < 0) return false;
        if (tensor.op != GGML_OP_RESHAPE && tensor.op != GGML_OP_VIEW && tensor.op != GGML_OP_CONT) return false;
        const auto& source = at(tensor.sources[0]);
        return source.shape[0] == tensor.shape[0] && n_values(source) == n_values(tensor) && source.type == tensor.type;
    }

    /// False where somebody reads the channels who could not take the factor back.
    bool collect_readers(int channels, ScalableChannels& found) const {
        if (channels == graph_.logits) return false;
        for (const int node : consumers_[static_cast<std::size_t>(channels)]) {
            const auto& tensor = at(node);
            // A view of a view shares this memory as well, and is met where its own source is.
            if (std::ranges::find(tensor.sources, channels) == tensor.sources.end()) continue;
            if (keeps_channels(node)) {
                if (!collect_readers(node, found)) return false;
                continue;
            }
            const auto& sources = at(node).sources;
            if (!multiplies(node) || sources[1] != channels || sources[2] == channels) return false;
            found.readers.push_back(at(sources[0]).name);
            found.last = std::max(found.last, node);
        }
        return true;
    }

    /// Whether a weight is one number per channel.
    bool is_channel_vector(int index, const ScalableChannels& found) const {
        return is_free_weight(index) && at(index).shape[0] == found.n_channels &&
               n_values(at(index)) == found.n_channels;
    }

    /// Follows the channels to where they are made, through `source`, which only `reader` may read.
    bool follow(int source, int reader, ScalableChannels& found) const {
        if (source < 0 || at(source).kind != TensorKind::node || at(source).shape[0] != found.n_channels) return false;
        if (consumers_[static_cast<std::size_t>(source)] != std::vector<int>{reader}) return false;
        return find_producer(source, found);
    }

    bool ends_at(int weight, int node, ScalableChannels& found) const {
        found.producer = at(weight).name;
        found.first = node;
        return true;
    }

    /// Where the channels of a node are made, all of whose readers are known.
    bool find_producer(int node, ScalableChannels& found) const {
        const auto& tensor = at(node);
        if (tensor.kind != TensorKind::node) return false;
        const auto& sources = tensor.sources;
        if (keeps_channels(node)) return follow(sources[0], node, found);
        switch (tensor.op) {
            case GGML_OP_MUL_MAT:
            case GGML_OP_MUL_MAT_ID:
                return is_free_weight(sources[0]) && at(sources[0]).shape[1] == found.n_channels &&
                       ends_at(sources[0], node, found);
            case GGML_OP_MUL:
                for (const int which : {0, 1})
                    if (is_channel_vector(sources[static_cast<std::size_t>(which)], found))
                        return ends_at(sources[static_cast<std::size_t>(which)], node, found);
                // One of two factors takes the scale: the one that is made of a weight.
                for (const int which : {0, 1}) {
                    auto along = found;
                    if (!follow(sources[static_cast<std::size_t>(which)], node, along)) continue;
                    found = std::move(along);
                    return true;
                }
                return false;
            case GGML_OP_ADD:
                for (const int which : {0, 1})
                    if (const int offset = sources[static_cast<std::size_t>(which)]; is_channel_vector(offset, found)) {
                        found.offsets.push_back(at(offset).name);
                        return follow(sources[static_cast<std::size_t>(1 - which)], node, found);
                    }
                return false;
            case GGML_OP_GLU:
                return is_linear_in_second(tensor) && follow(sources[1], node, found);
            default:
                return false;
        }
    }

    /// act(first) · second; the variant with limits is not linear.
    static bool is_linear_in_second(const RecordedTensor& tensor) {
        if (tensor.sources[1] < 0) return false;
        switch (static_cast<ggml_glu_op>(tensor.op_params[0])) {
            case GGML_GLU_OP_REGLU:
            case GGML_GLU_OP_GEGLU:
            case GGML_GLU_OP_SWIGLU:
            case GGML_GLU_OP_GEGLU_ERF:
            case GGML_GLU_OP_GEGLU_QUICK:
                return true;
            default:
                return false;
        }
    }

    const Topology& topology_;
    const RecordedGraph& graph_;
    std::vector<std::vector<int>> consumers_;  // by tensor
};

}  // namespace

std::vector<ScalableChannels> find_scalable_channels(const Topology& topology) {
    return Finder(topology).all();
}

}  // namespace cerebellum
