#include "cerebellum/calibrate/imatrix.h"

#include <fmt/format.h>
#include <ggml-backend.h>

#include <algorithm>
#include <array>
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

using Shape = std::array<std::int64_t, GGML_MAX_DIMS>;

/// Content of a tensor together with how to step through it.
struct View {
    std::vector<std::byte> bytes;
    Shape shape{};
    std::array<std::size_t, GGML_MAX_DIMS> strides{};

    const std::byte* at(std::int64_t i1, std::int64_t i2, std::int64_t i3) const {
        return bytes.data() + static_cast<std::size_t>(i1) * strides[1] + static_cast<std::size_t>(i2) * strides[2] +
               static_cast<std::size_t>(i3) * strides[3];
    }
};

void add_squares(const std::byte* row, std::int64_t n, double* sums) {
    const auto* x = reinterpret_cast<const float*>(row);
    for (std::int64_t i = 0; i < n; ++i) sums[i] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
}

void add_experts(const Shape& weight, const View& activations, const View& ids, Sums& sums) {
    const auto n = activations.shape[0];
    sums.squares.resize(static_cast<std::size_t>(n * weight[2]));
    sums.counts.resize(static_cast<std::size_t>(weight[2]));
    for (std::int64_t token = 0; token < ids.shape[1]; ++token)
        for (std::int64_t k = 0; k < ids.shape[0]; ++k) {
            std::int32_t expert = 0;
            std::memcpy(&expert, ids.at(token, 0, 0) + static_cast<std::size_t>(k) * ids.strides[0], sizeof expert);
            sums.counts[static_cast<std::size_t>(expert)] += 1.0;
            add_squares(activations.at(k % activations.shape[1], token, 0), n, sums.squares.data() + expert * n);
        }
}

void add_dense(const Shape& weight, const View& activations, Sums& sums) {
    const auto& shape = activations.shape;
    const auto n_matrices = weight[2] * weight[3];
    sums.squares.resize(static_cast<std::size_t>(shape[0] * n_matrices));
    sums.counts.resize(1);
    for (std::int64_t i3 = 0; i3 < shape[3]; ++i3)
        for (std::int64_t i2 = 0; i2 < shape[2]; ++i2) {
            const auto matrix = (i3 % weight[3]) * weight[2] + i2 % weight[2];
            for (std::int64_t i1 = 0; i1 < shape[1]; ++i1)
                add_squares(activations.at(i1, i2, i3), shape[0], sums.squares.data() + matrix * shape[0]);
        }
    sums.counts[0] += static_cast<double>(shape[1] * shape[2] * shape[3]) / static_cast<double>(n_matrices);
}

Imatrix finish(const std::map<std::string, Sums>& sums, const std::string& dataset, std::size_t n_windows, int n_tokens,
               const Model& model) {
    Imatrix result;
    result.datasets = {dataset};
    result.chunk_count = static_cast<std::uint32_t>(n_windows);
    result.chunk_size = static_cast<std::uint32_t>(n_tokens);
    for (const auto& [name, sum] : sums) {
        ImatrixEntry entry;
        entry.in_sum2.assign(sum.squares.begin(), sum.squares.end());
        entry.counts.assign(sum.counts.begin(), sum.counts.end());
        entry.n_cols = static_cast<std::int64_t>(sum.squares.size() / sum.counts.size());
        for (const float value : entry.in_sum2)
            if (!std::isfinite(value))
                throw Error(fmt::format("the inputs of {} are not finite; {} cannot be calibrated on this text", name,
                                        model.path().string()));
        result.entries.emplace(name, std::move(entry));
    }
    return result;
}

/// Collects while libllama evaluates.
class InputCollector final : public NodeObserver {
  public:
    bool wants(const ggml_tensor& node) override {
        return (node.op == GGML_OP_MUL_MAT || node.op == GGML_OP_MUL_MAT_ID) && node.src[0]->buffer != nullptr &&
               ggml_backend_buffer_get_usage(node.src[0]->buffer) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS &&
               node.src[1]->type == GGML_TYPE_F32;
    }
    void computed(const ggml_tensor& node) override {
        if (!wants(node)) return;
        Shape weight{};
        std::ranges::copy(node.src[0]->ne, weight.begin());
        auto& entry = sums[node.src[0]->name];
        if (node.op == GGML_OP_MUL_MAT_ID)
            add_experts(weight, content(*node.src[1]), content(*node.src[2]), entry);
        else
            add_dense(weight, content(*node.src[1]), entry);
    }

    std::map<std::string, Sums> sums;

  private:
    static View content(const ggml_tensor& tensor) {
        View view;
        view.bytes.resize(ggml_nbytes(&tensor));
        ggml_backend_tensor_get(&tensor, view.bytes.data(), 0, view.bytes.size());
        std::ranges::copy(tensor.ne, view.shape.begin());
        std::ranges::copy(tensor.nb, view.strides.begin());
        return view;
    }
};

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
        const auto range = engine.slice(cuts[c], cuts[c + 1], options);
        for (std::size_t w = 0; w < windows.size(); ++w) {
            progress.check();
            range->run(windows[w].inputs, states[w]);
            const auto view = [&](int index) {
                const auto& tensor = graph.tensors[static_cast<std::size_t>(index)];
                return View{range->read(index), tensor.shape, tensor.strides};
            };
            for (const int i : multiplications) {
                const auto& node = graph.tensors[static_cast<std::size_t>(i)];
                const auto& weight = graph.tensors[static_cast<std::size_t>(node.sources[0])];
                if (node.op == GGML_OP_MUL_MAT_ID)
                    add_experts(weight.shape, view(node.sources[1]), view(node.sources[2]), sums[weight.name]);
                else
                    add_dense(weight.shape, view(node.sources[1]), sums[weight.name]);
            }
            states[w] = range->live_out(states[w]);
            progress.advance(++done, "windows");
        }
    }
    progress.end();

    return finish(sums, dataset, windows.size(), engine.n_tokens(), engine.model());
}

Imatrix compute_imatrix(const Model& model, const TokenWindows& windows, int threads, const std::string& dataset,
                        Progress& progress) {
    const auto n_tokens = static_cast<int>(windows.front().size());
    const auto collector = std::make_shared<InputCollector>();
    Decoder decoder(model, n_tokens, threads, collector);
    progress.begin("importance matrix", static_cast<double>(windows.size()));
    double done = 0.0;
    for (const auto& window : windows) {
        progress.check();
        decoder.decode(window);
        progress.advance(++done, "windows");
    }
    progress.end();
    return finish(collector->sums, dataset, windows.size(), n_tokens, model);
}

}  // namespace cerebellum
