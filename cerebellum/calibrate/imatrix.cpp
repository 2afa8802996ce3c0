#include "cerebellum/calibrate/imatrix.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <map>
#include <vector>

#include "cerebellum/core/error.h"

namespace cerebellum {

namespace {

struct Sums {
    std::vector<double> squares;
    std::vector<double> counts;
};

/// Content of a tensor together with how to step through it.
struct View {
    std::vector<std::byte> bytes;
    const RecordedTensor* tensor = nullptr;

    const std::byte* at(std::int64_t i1, std::int64_t i2, std::int64_t i3) const {
        const auto& nb = tensor->strides;
        return bytes.data() + static_cast<std::size_t>(i1) * nb[1] + static_cast<std::size_t>(i2) * nb[2] +
               static_cast<std::size_t>(i3) * nb[3];
    }
};

void add_squares(const std::byte* row, std::int64_t n, double* sums) {
    const auto* x = reinterpret_cast<const float*>(row);
    for (std::int64_t i = 0; i < n; ++i) sums[i] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
}

void add_experts(const RecordedTensor& weight, const View& activations, const View& ids, Sums& sums) {
    const auto n = activations.tensor->shape[0];
    sums.squares.resize(static_cast<std::size_t>(n * weight.shape[2]));
    sums.counts.resize(static_cast<std::size_t>(weight.shape[2]));
    for (std::int64_t token = 0; token < ids.tensor->shape[1]; ++token)
        for (std::int64_t k = 0; k < ids.tensor->shape[0]; ++k) {
            std::int32_t expert = 0;
            std::memcpy(&expert, ids.at(token, 0, 0) + static_cast<std::size_t>(k) * ids.tensor->strides[0],
                        sizeof expert);
            sums.counts[static_cast<std::size_t>(expert)] += 1.0;
            add_squares(activations.at(k % activations.tensor->shape[1], token, 0), n,
                        sums.squares.data() + expert * n);
        }
}

void add_dense(const RecordedTensor& weight, const View& activations, Sums& sums) {
    const auto& shape = activations.tensor->shape;
    const auto n_matrices = weight.shape[2] * weight.shape[3];
    sums.squares.resize(static_cast<std::size_t>(shape[0] * n_matrices));
    sums.counts.resize(1);
    for (std::int64_t i3 = 0; i3 < shape[3]; ++i3)
        for (std::int64_t i2 = 0; i2 < shape[2]; ++i2) {
            const auto matrix = (i3 % weight.shape[3]) * weight.shape[2] + i2 % weight.shape[2];
            for (std::int64_t i1 = 0; i1 < shape[1]; ++i1)
                add_squares(activations.at(i1, i2, i3), shape[0], sums.squares.data() + matrix * shape[0]);
        }
    sums.counts[0] += static_cast<double>(shape[1] * shape[2] * shape[3]) / static_cast<double>(n_matrices);
}

}  // namespace

Imatrix compute_imatrix(ReplayEngine& engine, std::span<const Window> windows, const std::string& dataset,
                        Progress& progress) {
    const auto& topology = engine.topology();
    const auto& graph = topology.graph();
    const auto cuts = topology.cuts();

    std::map<std::string, Sums> sums;
    std::vector<LiveState> states(windows.size());
    progress.begin("importance matrix", static_cast<double>(cuts.size() - 1) * static_cast<double>(windows.size()));
    double done = 0.0;
    for (std::size_t c = 0; c + 1 < cuts.size(); ++c) {
        std::vector<int> multiplications;
        Slice::Options options;
        for (int i = cuts[c]; i < cuts[c + 1]; ++i) {
            const auto& node = graph.tensors[static_cast<std::size_t>(i)];
            if (node.op != GGML_OP_MUL_MAT && node.op != GGML_OP_MUL_MAT_ID) continue;
            const auto& weight = graph.tensors[static_cast<std::size_t>(node.sources[0])];
            if (weight.kind != TensorKind::weight ||
                graph.tensors[static_cast<std::size_t>(node.sources[1])].type != GGML_TYPE_F32)
                continue;
            multiplications.push_back(i);
            options.reads.push_back(node.sources[1]);
            if (node.op == GGML_OP_MUL_MAT_ID) options.reads.push_back(node.sources[2]);
        }
        Slice slice(topology, engine.device(), cuts[c], cuts[c + 1], options);
        for (std::size_t w = 0; w < windows.size(); ++w) {
            progress.check();
            slice.run(windows[w].inputs, states[w]);
            const auto view = [&](int index) {
                return View{slice.read(index), &graph.tensors[static_cast<std::size_t>(index)]};
            };
            for (const int i : multiplications) {
                const auto& node = graph.tensors[static_cast<std::size_t>(i)];
                const auto& weight = graph.tensors[static_cast<std::size_t>(node.sources[0])];
                if (node.op == GGML_OP_MUL_MAT_ID)
                    add_experts(weight, view(node.sources[1]), view(node.sources[2]), sums[weight.name]);
                else
                    add_dense(weight, view(node.sources[1]), sums[weight.name]);
            }
            states[w] = slice.live_out(states[w]);
            progress.advance(++done, "windows");
        }
    }
    progress.end();

    Imatrix result;
    result.datasets = {dataset};
    result.chunk_count = static_cast<std::uint32_t>(windows.size());
    result.chunk_size = static_cast<std::uint32_t>(engine.n_tokens());
    for (const auto& [name, sum] : sums) {
        ImatrixEntry entry;
        entry.in_sum2.assign(sum.squares.begin(), sum.squares.end());
        entry.counts.assign(sum.counts.begin(), sum.counts.end());
        entry.n_cols = static_cast<std::int64_t>(sum.squares.size() / sum.counts.size());
        for (const float value : entry.in_sum2)
            if (!std::isfinite(value))
                throw Error(fmt::format("the inputs of {} are not finite; {} cannot be calibrated on this text", name,
                                        engine.model().path().string()));
        result.entries.emplace(name, std::move(entry));
    }
    return result;
}

}  // namespace cerebellum
