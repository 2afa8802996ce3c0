#include "cerebellum/calibrate/second_moments.h"

#include <Eigen/Core>
#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "cerebellum/calibrate/activations.h"
#include "cerebellum/calibrate/input_sums.h"
#include "cerebellum/core/parallel.h"

namespace cerebellum {

namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// What a product reads besides the weight: activations, and the ids of experts or -1. The same sources, the same
/// input.
using Sources = std::vector<std::pair<int, int>>;

/// Where a weight is multiplied with activations.
struct Products {
    Sources sources;
    std::vector<int> nodes;
};

std::map<std::string, Products> find_products(const Topology& topology) {
    const auto& graph = topology.graph();
    std::map<std::string, Products> result;
    for (int i = 0; i < topology.n_nodes(); ++i) {
        const auto& node = graph.tensors[static_cast<std::size_t>(i)];
        if (!multiplies_weight(graph, node)) continue;
        auto& products = result[graph.tensors[static_cast<std::size_t>(node.sources[0])].name];
        products.sources.emplace_back(node.sources[1], node.op == GGML_OP_MUL_MAT_ID ? node.sources[2] : -1);
        products.nodes.push_back(i);
    }
    return result;
}

/// The range of the graph, by its first node, that a node is in.
int range_of(const std::vector<int>& cuts, int node) {
    return *std::prev(std::ranges::upper_bound(cuts, node));
}

const Shape& shape_of(const Topology& topology, const Products& products) {
    const auto& tensors = topology.graph().tensors;
    const auto& product = tensors[static_cast<std::size_t>(products.nodes.front())];
    return tensors[static_cast<std::size_t>(product.sources[0])].shape;
}

/// Σ x xᵀ of one matrix; only the lower triangle means anything.
class Accumulator {
  public:
    Accumulator(const InputMoments* input, std::int64_t matrix) : input_(input), matrix_(matrix) {}

    const InputMoments& input() const { return *input_; }
    std::int64_t matrix() const { return matrix_; }
    static std::uint64_t bytes(std::int64_t n_cols) {
        return static_cast<std::uint64_t>(n_cols * n_cols) * sizeof(float);
    }

    void begin() { sum_ = RowMajor::Zero(input_->n_cols, input_->n_cols); }
    void add(const float* x) { pending_.insert(pending_.end(), x, x + input_->n_cols); }
    /// Adds what add() was given.
    void flush(int threads) {
        const auto n = input_->n_cols;
        const Eigen::Map<const RowMajor> x(pending_.data(), static_cast<std::int64_t>(pending_.size()) / n, n);
        // Strips of the triangle, the same whatever the number of threads.
        constexpr std::int64_t strip = 64;
        parallel_chunks(n, strip, threads, [&](std::int64_t begin, std::int64_t end) {
            sum_.block(begin, 0, end - begin, end).noalias() +=
                x.middleCols(begin, end - begin).transpose() * x.leftCols(end);
        });
        pending_.clear();
    }
    std::vector<float> lower_triangle() const {
        std::vector<float> result;
        result.reserve(static_cast<std::size_t>(input_->n_cols * (input_->n_cols + 1) / 2));
        for (std::int64_t i = 0; i < input_->n_cols; ++i)
            result.insert(result.end(), sum_.data() + i * input_->n_cols, sum_.data() + i * input_->n_cols + i + 1);
        return result;
    }

  private:
    const InputMoments* input_;
    std::int64_t matrix_;
    RowMajor sum_;
    std::vector<float> pending_;
};

/// Σ x xᵀ of dense inputs in a device's memory, one n_cols × n_cols matrix each.
class DeviceSums {
  public:
    DeviceSums(Device& device, const std::vector<const InputMoments*>& inputs)
        : device_(&device), context_(make_tensor_context(inputs.size())) {
        for (const auto* input : inputs)
            sums_.push_back(ggml_new_tensor_2d(context_.get(), GGML_TYPE_F32, input->n_cols, input->n_cols));
        buffer_ = device.allocate(context_.get());
        ggml_backend_buffer_clear(buffer_.get(), 0);
    }
    ggml_tensor* at(std::size_t input) const { return sums_[input]; }
    std::vector<float> lower_triangle(std::size_t input) const {
        device_->wait();
        const auto n = static_cast<std::size_t>(sums_[input]->ne[0]);
        std::vector<float> all(n * n), result;
        ggml_backend_tensor_get(sums_[input], all.data(), 0, all.size() * sizeof(float));
        result.reserve(n * (n + 1) / 2);
        for (std::size_t i = 0; i < n; ++i) {
            const auto row = all.begin() + static_cast<std::ptrdiff_t>(i * n);
            result.insert(result.end(), row, row + static_cast<std::ptrdiff_t>(i + 1));
        }
        return result;
    }

  private:
    Device* device_;
    GgmlContext context_;
    GgmlBuffer buffer_;
    std::vector<ggml_tensor*> sums_;
};

/// Device memory that states leave to sums, given back in the end.
class Reservation {
  public:
    Reservation(ReplayEngine& engine, std::size_t bytes) : engine_(engine) { engine.reserve_device_bytes(bytes); }
    ~Reservation() { engine_.reserve_device_bytes(0); }
    Reservation(const Reservation&) = delete;
    Reservation& operator=(const Reservation&) = delete;

  private:
    ReplayEngine& engine_;
};

class Collector {
  public:
    Collector(ReplayEngine& engine, std::span<const Window> windows, const std::map<std::string, InputMoments>& inputs,
              std::uint64_t memory_bytes, int threads, MomentSink& sink, Progress& progress)
        : engine_(engine),
          products_(find_products(engine.topology())),
          windows_(windows),
          threads_(threads),
          sink_(sink),
          progress_(progress) {
        std::set<std::string> seen;
        for (const auto& [weight, input] : inputs)
            if (seen.insert(input.input).second) plan(input, memory_bytes);
    }

    void run() {
        const auto cuts = engine_.topology().cuts();
        std::size_t last = 0;  // nothing is to be had behind it
        for (std::size_t c = 0; c + 1 < cuts.size(); ++c)
            if (!passes_[cuts[c]].empty()) last = c + 1;
        double passes = 0.0;
        for (std::size_t c = 0; c < last; ++c)
            passes += static_cast<double>(std::max<std::size_t>(1, passes_[cuts[c]].size()));
        if (last == 0) return;
        progress_.begin("second moments", passes * static_cast<double>(windows_.size()));
        std::vector<LiveState> states(windows_.size());
        const Reservation reservation(engine_, most_device_bytes_);
        for (std::size_t c = 0; c < last; ++c) {
            auto& of_range = passes_[cuts[c]];
            if (of_range.empty()) of_range.emplace_back();
            for (std::size_t p = 0; p < of_range.size(); ++p) {
                auto& pass = of_range[p];
                collect(pass, cuts[c], cuts[c + 1], c + 1 == last, p + 1 == of_range.size(), states);
                pass = {};
            }
        }
        progress_.end();
    }

  private:
    /// What one replay of a range collects.
    struct Pass {
        std::uint64_t bytes = 0;
        std::vector<Accumulator> sums;
        std::set<std::string> inputs;  // of the sums
        std::uint64_t device_bytes = 0;
        std::uint64_t largest_bytes = 0;
        std::vector<const InputMoments*> on_device;

        /// What it takes of the device with one more sum of so many bytes: there are three products at a time.
        std::uint64_t device_bytes_with(std::uint64_t more) const {
            return device_bytes + more + 3 * std::max(largest_bytes, more);
        }
    };
    /// Inputs whose nodes find room behind a range's own.
    static constexpr std::size_t most_in_tail = 16;

    /// Replays a range with all windows; `states` go on to its end where this is its last pass.
    void collect(Pass& pass, int begin, int end, bool last_range, bool last_pass, std::vector<LiveState>& states) {
        std::optional<DeviceSums> sums;
        if (!pass.on_device.empty()) sums.emplace(engine_.device_at(begin), pass.on_device);
        const auto range = slice(pass, begin, end, last_range, sums ? &*sums : nullptr);
        for (auto& sum : pass.sums) sum.begin();
        for (std::size_t w = 0; w < windows_.size(); ++w) {
            progress_.check();
            range->run(windows_[w].inputs, states[w]);
            add(*range, pass);
            if (!last_range && last_pass) states[w] = range->live_out(states[w]);
            progress_.advance(++done_, "windows");
        }
        for (const auto& sum : pass.sums) sink_.put(sum.input().input, sum.matrix(), sum.lower_triangle());
        for (std::size_t i = 0; i < pass.on_device.size(); ++i)
            sink_.put(pass.on_device[i]->input, 0, sums->lower_triangle(i));
    }

    void plan(const InputMoments& input, std::uint64_t memory_bytes) {
        const int begin = range_of(engine_.topology().cuts(), products_.at(input.input).nodes.front());
        auto& passes = passes_[begin];
        const auto bytes = Accumulator::bytes(input.n_cols);
        const auto spare = engine_.spare_device_bytes(begin);
        const bool on_device = !has_experts(input) && input.n_matrices == 1 && Pass().device_bytes_with(bytes) <= spare;
        for (std::int64_t matrix = 0; matrix < input.n_matrices; ++matrix) {
            if (sink_.has(input.input, matrix)) continue;
            if (passes.empty() || (on_device ? passes.back().device_bytes_with(bytes) > spare ||
                                                   passes.back().on_device.size() == most_in_tail
                                             : passes.back().bytes + bytes > memory_bytes))
                passes.emplace_back();
            auto& pass = passes.back();
            if (on_device) {
                most_device_bytes_ = std::max(most_device_bytes_, pass.device_bytes_with(bytes));
                pass.device_bytes += bytes;
                pass.largest_bytes = std::max(pass.largest_bytes, bytes);
                pass.on_device.push_back(&input);
                continue;
            }
            pass.bytes += bytes;
            pass.sums.emplace_back(&input, matrix);
            pass.inputs.insert(input.input);
        }
    }

    bool has_experts(const InputMoments& input) const {
        return std::ranges::any_of(products_.at(input.input).sources,
                                   [](const auto& source) { return source.second >= 0; });
    }

    std::unique_ptr<Slice> slice(const Pass& pass, int begin, int end, bool last, const DeviceSums* sums) {
        Slice::Options options;
        for (const auto& name : pass.inputs)
            for (const auto& [activations, ids] : products_.at(name).sources) {
                options.reads.push_back(activations);
                if (ids >= 0) options.reads.push_back(ids);
            }
        auto used = options.reads;
        for (const auto* input : pass.on_device)
            for (const auto& [activations, ids] : products_.at(input->input).sources) used.push_back(activations);
        if (sums != nullptr)
            options.tail = [this, &pass, sums](ggml_context* context, const Slice::Clone& clone) {
                Slice::Tail tail;
                for (std::size_t i = 0; i < pass.on_device.size(); ++i) {
                    auto* sum = sums->at(i);
                    for (const auto& [activations, ids] : products_.at(pass.on_device[i]->input).sources)
                        sum = ggml_add_inplace(context, sum, outer_product_nodes(context, clone(activations)));
                    tail.outputs.push_back(sum);
                }
                return tail;
            };
        return engine_.slice(begin, last ? last_read_end(begin, end, used) : end, options);
    }

    void add(const Slice& range, Pass& pass) {
        const auto& graph = engine_.topology().graph();
        const auto view = [&](int index) {
            const auto& tensor = graph.tensors[static_cast<std::size_t>(index)];
            return View{range.read(index), tensor.shape, tensor.strides};
        };
        for (const auto& name : pass.inputs) {
            const auto& products = products_.at(name);
            std::map<std::int64_t, Accumulator*> by_matrix;
            for (auto& sum : pass.sums)
                if (sum.input().input == name) by_matrix[sum.matrix()] = &sum;
            const auto keep = [&](std::int64_t matrix, const float* row) {
                if (const auto found = by_matrix.find(matrix); found != by_matrix.end()) found->second->add(row);
            };
            for (const auto& [activations, ids] : products.sources) {
                if (ids >= 0)
                    visit_expert_inputs(view(activations), view(ids), keep);
                else
                    visit_inputs(shape_of(engine_.topology(), products), view(activations), keep);
            }
            for (const auto& [matrix, sum] : by_matrix) sum->flush(threads_);
        }
    }

    ReplayEngine& engine_;
    std::map<std::string, Products> products_;
    std::span<const Window> windows_;
    int threads_;
    MomentSink& sink_;
    Progress& progress_;
    std::map<int, std::vector<Pass>> passes_;  // by the begin of the range
    std::uint64_t most_device_bytes_ = 0;
    double done_ = 0.0;
};

}  // namespace

std::map<std::string, InputMoments> find_inputs(const Topology& topology, const std::set<std::string>& weights) {
    std::map<std::string, InputMoments> result;
    std::map<std::pair<Sources, Shape>, std::string> first_with;
    const auto cuts = topology.cuts();
    for (const auto& [name, products] : find_products(topology)) {
        // Where a block's weight is used by another one too, no single replay sees all of its inputs.
        if (!weights.contains(name) || range_of(cuts, products.nodes.front()) != range_of(cuts, products.nodes.back()))
            continue;
        const auto& shape = shape_of(topology, products);
        const Shape inputs = {shape[0], 0, shape[2], shape[3]};
        const auto input = first_with.emplace(std::pair(products.sources, inputs), name).first->second;
        result[name] = {input, shape[0], shape[2] * shape[3]};
    }
    return result;
}

void collect_second_moments(ReplayEngine& engine, std::span<const Window> windows,
                            const std::map<std::string, InputMoments>& inputs, std::uint64_t memory_bytes, int threads,
                            MomentSink& sink, Progress& progress) {
    Collector(engine, windows, inputs, memory_bytes, threads, sink, progress).run();
}

}  // namespace cerebellum
