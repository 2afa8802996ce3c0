#include "type_pairs.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <exception>
#include <optional>
#include <random>
#include <vector>

#include "cerebellum/core/equal_strides.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/llama/presets.h"
#include "cerebellum/quantize/quantize_tensor.h"
#include "cerebellum/replay/engine.h"

namespace cerebellum {

namespace {

namespace fs = std::filesystem;

constexpr int n_tokens = 64;
// A device that keeps graphs keeps one when it has seen it twice, and runs what it kept from the third time on.
constexpr int repetitions = 4;
// Devices round activations to 8 bits in their own ways, which makes products differ by a percent at most.
constexpr double tolerance = 0.05;

std::optional<TensorInfo> matrix_of(const fs::path& path) {
    const auto source = GgufFile::open(path);
    std::optional<TensorInfo> best;
    std::size_t most = 0;
    for (const auto& name : quantizable_tensors(path)) {
        const auto* tensor = source.find(name);
        if (!name.starts_with("blk.1.") || tensor == nullptr) continue;
        const auto n = pairs_of_equal_strides(tensor->row_length()).size();
        if (n == 0 || n < most || (n == most && best && tensor->n_weights() <= best->n_weights())) continue;
        most = n;
        best = *tensor;
    }
    return best;
}

/// The products of one matrix, in one type after the other.
class Products {
  public:
    Products(const std::string& device, const Model& model, const std::vector<Token>& tokens, const std::string& weight)
        : engine_(model, n_tokens, EngineOptions{4, device, {}, {}, 1}),
          weight_(weight),
          window_(engine_.prepare(tokens)) {
        const auto& topology = engine_.topology();
        node_ = topology.weights().at(weight).first;
        end_ = topology.layers()[2].begin;
        const auto before = engine_.slice(0, node_);
        before->run(window_.inputs, {});
        state_ = before->live_out({});
    }

    struct Result {
        std::vector<float> values;
        const void* place = nullptr;  // where the weight lay
    };
    Result in(ggml_type type, std::span<const std::byte> bytes) {
        Slice::Options options;
        options.substitutes = {{weight_, {type, bytes}}};
        options.reads = {node_};
        const auto slice = engine_.slice(node_, end_, options);
        Result result;
        for (int i = 0; i < repetitions; ++i) slice->run(window_.inputs, state_);
        const auto raw = slice->read(node_);
        result.values.resize(raw.size() / sizeof(float));
        std::memcpy(result.values.data(), raw.data(), raw.size());
        for (const auto* source : ggml_graph_node(const_cast<ggml_cgraph*>(slice->nodes()), 0)->src)
            if (source != nullptr && weight_ == source->name) result.place = source->data;
        return result;
    }

  private:
    ReplayEngine engine_;
    std::string weight_;
    Window window_;
    int node_ = 0, end_ = 0;
    LiveState state_;
};

/// ‖a − b‖ / ‖b‖; not a number where a value of a is none.
double deviation(const std::vector<float>& a, const std::vector<float>& b) {
    double change = 0.0, norm = 0.0;
    for (std::size_t i = 0; i < b.size(); ++i) {
        change += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
        norm += std::pow(static_cast<double>(b[i]), 2);
    }
    return std::sqrt(change / norm);
}

}  // namespace

std::size_t count_type_pairs(const fs::path& model) {
    try {
        const auto matrix = matrix_of(model);
        return matrix ? pairs_of_equal_strides(matrix->row_length()).size() : 0;
    } catch (const std::exception&) {
        return 0;
    }
}

int check_type_pairs(const std::string& device, const fs::path& path) {
    const auto model = Model::load(path);
    const auto source = GgufFile::open(path);
    const auto matrix = matrix_of(path).value();
    std::mt19937 random(3);
    std::uniform_int_distribution<Token> token(0, model.n_vocab() - 1);
    std::vector<Token> tokens(n_tokens);
    for (auto& t : tokens) t = token(random);
    const std::vector<float> even(static_cast<std::size_t>(matrix.row_length() * matrix.shape[2]), 1.0F);
    const auto quantized = [&](ggml_type type) { return quantize_tensor(matrix, source.data(matrix), type, even, 4); };
    fmt::print("\n{} of {}, rows of {} weights: deviation of products on {} from the CPU's\n", matrix.name,
               path.stem().string(), matrix.row_length(), device);
    Products there(device, model, tokens, matrix.name), here("CPU", model, tokens, matrix.name);
    int wrong = 0;
    for (const auto& [a, b] : pairs_of_equal_strides(matrix.row_length())) {
        const auto bytes_a = quantized(a), bytes_b = quantized(b);
        const auto expected_a = here.in(a, bytes_a), expected_b = here.in(b, bytes_b);
        const auto first = there.in(a, bytes_a), second = there.in(b, bytes_b), third = there.in(a, bytes_a);
        const double deviations[] = {deviation(first.values, expected_a.values),
                                     deviation(second.values, expected_b.values),
                                     deviation(third.values, expected_a.values)};
        bool agrees = true;
        for (const double d : deviations) agrees = agrees && d <= tolerance;
        const bool same_place = first.place == second.place && second.place == third.place;
        fmt::print("{} and {}: A {:.2e}, then B {:.2e}, then A {:.2e}; {}; {}\n", type_name(a), type_name(b),
                   deviations[0], deviations[1], deviations[2], same_place ? "same place" : "another place",
                   agrees ? "agrees" : "DISAGREES");
        std::fflush(stdout);
        if (!agrees) ++wrong;
    }
    return wrong;
}

}  // namespace cerebellum
