#include "cerebellum/calibrate/imatrix.h"

#include <fmt/format.h>
#include <ggml-backend.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <vector>

#include "cerebellum/calibrate/activations.h"
#include "cerebellum/calibrate/input_sums.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/parallel.h"

namespace cerebellum {

namespace {

struct Sums {
    std::vector<double> squares;
    std::vector<double> counts;
};

/// Columns that one thread takes at a time.
constexpr std::int64_t column_chunk = 512;

void add_squares(const float* x, std::int64_t begin, std::int64_t end, double* sums) {
    for (auto i = begin; i < end; ++i) sums[i] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
}

void add_experts(const Shape& weight, const View& activations, const View& ids, Sums& sums, int threads) {
    const auto n = activations.shape[0];
    sums.squares.resize(static_cast<std::size_t>(n * weight[2]));
    sums.counts.resize(static_cast<std::size_t>(weight[2]));
    visit_expert_inputs(activations, ids, [&](std::int64_t expert, const float*) {
        sums.counts[static_cast<std::size_t>(expert)] += 1.0;
    });
    parallel_chunks(n, column_chunk, threads, [&](std::int64_t begin, std::int64_t end) {
        visit_expert_inputs(activations, ids, [&](std::int64_t expert, const float* row) {
            add_squares(row, begin, end, sums.squares.data() + expert * n);
        });
    });
}

/// Room for sums of a dense weight, and the tokens that activations of this shape add to each of its matrices.
void count_dense(const Shape& weight, const Shape& activations, Sums& sums) {
    const auto n_matrices = weight[2] * weight[3];
    sums.squares.resize(static_cast<std::size_t>(activations[0] * n_matrices));
    sums.counts.resize(1);
    sums.counts[0] +=
        static_cast<double>(activations[1] * activations[2] * activations[3]) / static_cast<double>(n_matrices);
}

void add_dense(const Shape& weight, const View& activations, Sums& sums, int threads) {
    const auto& shape = activations.shape;
    count_dense(weight, shape, sums);
    parallel_chunks(shape[0], column_chunk, threads, [&](std::int64_t begin, std::int64_t end) {
        visit_inputs(weight, activations, [&](std::int64_t matrix, const float* row) {
            add_squares(row, begin, end, sums.squares.data() + matrix * shape[0]);
        });
    });
}

/// The same from squared_sum_nodes(), [n, i2, i3].
void add_dense(const Shape& weight, const Shape& activations, std::span<const float> squares, Sums& sums) {
    count_dense(weight, activations, sums);
    std::size_t row = 0;
    visit_matrices(weight, activations, [&](std::int64_t matrix, std::int64_t, std::int64_t) {
        double* into = sums.squares.data() + matrix * activations[0];
        const auto from = squares.subspan(row++ * static_cast<std::size_t>(activations[0]));
        for (std::size_t i = 0; i < static_cast<std::size_t>(activations[0]); ++i)
            into[i] += static_cast<double>(from[i]);
    });
}

void add(const Sums& other, Sums& sums) {
    sums.squares.resize(other.squares.size());
    sums.counts.resize(other.counts.size());
    std::ranges::transform(sums.squares, other.squares, sums.squares.begin(), std::plus<>());
    std::ranges::transform(sums.counts, other.counts, sums.counts.begin(), std::plus<>());
}

/// Weights that see the same input in the same way: attention's q, k and v, the feed-forward's gate and up.
struct SharedInput {
    Shape weight{};
    int source = -1;
    int ids = -1;  // which experts; -1: no mixture
    std::vector<std::string> names;
    Sums sums;
};

/// The inputs of the matrix products in a range of nodes.
std::vector<SharedInput> inputs_of(const RecordedGraph& graph, int begin, int end) {
    std::vector<SharedInput> result;
    for (int i = begin; i < end; ++i) {
        const auto& node = graph.tensors[static_cast<std::size_t>(i)];
        if (!multiplies_weight(graph, node)) continue;
        const auto& weight = graph.tensors[static_cast<std::size_t>(node.sources[0])];
        const int ids = node.op == GGML_OP_MUL_MAT_ID ? node.sources[2] : -1;
        const auto same = std::ranges::find_if(result, [&](const SharedInput& input) {
            return input.source == node.sources[1] && input.ids == ids && input.weight[2] == weight.shape[2] &&
                   input.weight[3] == weight.shape[3];
        });
        if (same != result.end())
            same->names.push_back(weight.name);
        else
            result.push_back({weight.shape, node.sources[1], ids, {weight.name}, {}});
    }
    return result;
}

/// The replay of a range that lets the inputs be read or, on a device, leaves their squared sums in its tail: of those
/// without experts, in their order.
std::unique_ptr<Slice> input_slice(ReplayEngine& engine, int begin, int end, bool last,
                                   const std::vector<SharedInput>& inputs, bool on_device) {
    Slice::Options options;
    std::vector<int> used, summed;
    for (const auto& input : inputs) {
        used.push_back(input.source);
        if (input.ids >= 0) used.push_back(input.ids);
        if (input.ids < 0 && on_device) summed.push_back(input.source);
    }
    if (last) end = last_read_end(begin, end, used);
    std::ranges::copy_if(used, std::back_inserter(options.reads),
                         [&](int node) { return std::ranges::find(summed, node) == summed.end(); });
    if (!summed.empty())
        options.tail = [summed](ggml_context* context, const Slice::Clone& clone) {
            Slice::Tail tail;
            for (const int source : summed) tail.outputs.push_back(squared_sum_nodes(context, clone(source)));
            return tail;
        };
    return engine.slice(begin, end, options);
}

/// What input_slice()'s tail left of one window.
void add_kept(const RecordedGraph& graph, const std::vector<Value>& kept, std::vector<SharedInput>& inputs) {
    auto next = kept.begin();
    for (auto& input : inputs) {
        if (input.ids >= 0) continue;
        const auto bytes = read(**next++);
        std::vector<float> squares(bytes.size() / sizeof(float));
        std::memcpy(squares.data(), bytes.data(), bytes.size());
        add_dense(input.weight, graph.tensors[static_cast<std::size_t>(input.source)].shape, squares, input.sums);
    }
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
    explicit InputCollector(int threads) : threads_(threads) {}
    bool wants(const ggml_tensor& node) override {
        return (node.op == GGML_OP_MUL_MAT || node.op == GGML_OP_MUL_MAT_ID) && node.src[0]->buffer != nullptr &&
               ggml_backend_buffer_get_usage(node.src[0]->buffer) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS &&
               node.src[1]->type == GGML_TYPE_F32;
    }
    void computed(const ggml_tensor& node) override {
        if (!wants(node)) return;
        Shape weight{}, shape{};
        std::ranges::copy(node.src[0]->ne, weight.begin());
        std::ranges::copy(node.src[1]->ne, shape.begin());
        auto& entry = sums[node.src[0]->name];
        if (node.op == GGML_OP_MUL_MAT_ID)
            add_experts(weight, content(*node.src[1]), content(*node.src[2]), entry, threads_);
        else if (is_on_host(*node.src[1]))
            add_dense(weight, content(*node.src[1]), entry, threads_);
        else
            add_dense(weight, shape, squares_of(*node.src[1]), entry);
    }
    /// Another window is evaluated from now on.
    void begin_window() { last_ = nullptr; }

    std::map<std::string, Sums> sums;

  private:
    int threads_;
    SquaredSums on_device_;
    const ggml_tensor* last_ = nullptr;  // of this window, and its sums: often several weights have the same input
    std::vector<float> last_squares_;

    static bool is_on_host(const ggml_tensor& tensor) {
        return ggml_backend_buffer_is_host(tensor.view_src != nullptr ? tensor.view_src->buffer : tensor.buffer);
    }
    std::span<const float> squares_of(const ggml_tensor& activations) {
        if (last_ != &activations) last_squares_ = on_device_.of(activations);
        last_ = &activations;
        return last_squares_;
    }
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
    const int threads = engine.device().threads();

    std::map<std::string, Sums> sums;
    std::vector<LiveState> states(windows.size());
    progress.begin("importance matrix", static_cast<double>(cuts.size() - 1) * static_cast<double>(windows.size()));
    double done = 0.0;
    for (std::size_t c = 0; c + 1 < cuts.size(); ++c) {
        auto inputs = inputs_of(graph, cuts[c], cuts[c + 1]);
        // More would not find room behind the range's own nodes.
        constexpr std::size_t most_on_device = 48;
        const bool on_device = !engine.is_host() && inputs.size() <= most_on_device;
        const bool last = c + 2 == cuts.size();
        const auto range = input_slice(engine, cuts[c], cuts[c + 1], last, inputs, on_device);
        std::vector<std::vector<Value>> squares;
        for (std::size_t w = 0; w < windows.size(); ++w) {
            progress.check();
            range->run(windows[w].inputs, states[w]);
            if (on_device) squares.push_back(range->keep_tail());
            const auto view = [&](int index) {
                const auto& tensor = graph.tensors[static_cast<std::size_t>(index)];
                return View{range->read(index), tensor.shape, tensor.strides};
            };
            for (auto& input : inputs) {
                if (input.ids >= 0)
                    add_experts(input.weight, view(input.source), view(input.ids), input.sums, threads);
                else if (!on_device)
                    add_dense(input.weight, view(input.source), input.sums, threads);
            }
            if (!last) states[w] = range->live_out(states[w]);
            progress.advance(++done, "windows");
        }
        for (const auto& of_window : squares) add_kept(graph, of_window, inputs);
        for (const auto& input : inputs)
            for (const auto& name : input.names) add(input.sums, sums[name]);
    }
    progress.end();

    return finish(sums, dataset, windows.size(), engine.n_tokens(), engine.model());
}

Imatrix compute_imatrix(const Model& model, const TokenWindows& windows, int threads, const std::string& dataset,
                        Progress& progress) {
    const auto n_tokens = static_cast<int>(windows.front().size());
    const auto collector = std::make_shared<InputCollector>(threads);
    Decoder decoder(model, n_tokens, threads, collector);
    progress.begin("importance matrix", static_cast<double>(windows.size()));
    double done = 0.0;
    for (const auto& window : windows) {
        progress.check();
        collector->begin_window();
        decoder.decode(window);
        progress.advance(++done, "windows");
    }
    progress.end();
    return finish(collector->sums, dataset, windows.size(), n_tokens, model);
}

}  // namespace cerebellum
