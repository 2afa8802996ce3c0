#pragma once

// For tests only: what replaying is compared with.

#include <ggml.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <random>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "cerebellum/llama/model.h"
#include "cerebellum/llama/recorder.h"
#include "cerebellum/replay/slice.h"

namespace cerebellum::testing {

inline std::vector<Token> random_tokens(const Model& model, int n_tokens, unsigned seed) {
    std::mt19937 random(seed);
    std::uniform_int_distribution<Token> token(0, model.n_vocab() - 1);
    std::vector<Token> tokens(static_cast<std::size_t>(n_tokens));
    for (auto& t : tokens) t = token(random);
    return tokens;
}

inline std::vector<float> decode(const Model& model, std::span<const Token> tokens) {
    Decoder decoder(model, static_cast<int>(tokens.size()), 1);
    const auto logits = decoder.decode(tokens);
    return {logits.begin(), logits.end()};
}

/// "" where all bits are equal, else what the first and the largest difference are.
inline std::string difference(std::span<const float> a, std::span<const float> b) {
    if (a.size() != b.size()) return std::to_string(a.size()) + " against " + std::to_string(b.size()) + " values";
    if (std::memcmp(a.data(), b.data(), a.size_bytes()) == 0) return "";
    std::size_t count = 0;
    double largest = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        if (std::bit_cast<std::uint32_t>(a[i]) == std::bit_cast<std::uint32_t>(b[i])) continue;
        ++count;
        const double change = std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
        if (!(change <= largest)) largest = change;
    }
    return std::to_string(count) + " of " + std::to_string(a.size()) + " differ, by up to " + std::to_string(largest);
}

inline double largest_change(std::span<const float> a, std::span<const float> b) {
    double largest = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i)
        largest = std::max(largest, std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
    return largest;
}

/// One window of a model with everything that is needed to replay it from anywhere.
class ReplayedWindow {
  public:
    ReplayedWindow(const Model& model, std::vector<Token> tokens, const std::string& device = {})
        : tokens_(std::move(tokens)),
          recorder_(model, static_cast<int>(tokens_.size())),
          topology_(recorder_.graph()),
          device_(device, 1),
          weights_(device_) {
        for (const auto& [index, bytes] : recorder_.inputs(tokens_).values)
            inputs_[index] = device_.values().keep(*bytes);
    }

    const Topology& topology() const { return topology_; }
    const InputValues& inputs() const { return inputs_; }
    const std::vector<Token>& tokens() const { return tokens_; }

    /// Logits of a replay of [cut, end) from the source's live state at `cut`, which comes from a replay of [0, cut).
    std::vector<float> logits_from(int cut, const Substitutions& substitutes = {}) {
        LiveState state;
        if (cut > 0) {
            // From the nearest earlier cut that was asked for.
            auto known = states_.upper_bound(cut);
            int from = 0;
            if (known != states_.begin()) {
                --known;
                from = known->first;
                state = known->second;
            }
            if (from < cut) {
                Slice before(topology_, device_, weights_, from, cut, {});
                before.run(inputs_, state);
                state = before.live_out(state);
                states_[cut] = state;
            }
        }
        const int logits = topology_.graph().logits;
        Slice::Options options;
        options.substitutes = substitutes;
        options.reads = {logits};
        Slice behind(topology_, device_, weights_, cut, topology_.n_nodes(), options);
        behind.run(inputs_, state);
        const auto bytes = behind.read(logits);
        std::vector<float> values(bytes.size() / sizeof(float));
        std::memcpy(values.data(), bytes.data(), bytes.size());
        return values;
    }

    /// Cuts at the beginning of every block and behind the last one.
    std::set<int> layer_cuts() const {
        std::set<int> cuts = {0, topology_.head_cut()};
        for (const auto& layer : topology_.layers()) cuts.insert(layer.begin);
        return cuts;
    }

    /// Cuts in front of the node that is the first to read a weight.
    std::set<int> weight_cuts() const {
        std::set<int> cuts;
        for (const auto& [name, use] : topology_.weights()) cuts.insert(use.first);
        return cuts;
    }

    const RecordedTensor& weight(const std::string& name) const {
        for (const auto& tensor : topology_.graph().tensors)
            if (tensor.kind == TensorKind::weight && tensor.name == name) return tensor;
        throw std::runtime_error("no weight " + name);
    }

    /// A weight in another type, rounded by ggml itself.
    std::vector<std::byte> quantized(const std::string& name, ggml_type type) const {
        const auto* source = weight(name).weight;
        std::vector<float> floats(static_cast<std::size_t>(ggml_nelements(source)));
        if (source->type == GGML_TYPE_F32)
            std::memcpy(floats.data(), source->data, floats.size() * sizeof(float));
        else
            ggml_get_type_traits(source->type)->to_float(source->data, floats.data(), ggml_nelements(source));
        const auto rows = ggml_nrows(source);
        std::vector<std::byte> bytes(ggml_row_size(type, source->ne[0]) * static_cast<std::size_t>(rows));
        ggml_quantize_chunk(type, floats.data(), bytes.data(), 0, rows, source->ne[0], nullptr);
        return bytes;
    }

  private:
    std::vector<Token> tokens_;
    Recorder recorder_;
    Topology topology_;
    Device device_;
    WeightStore weights_;
    InputValues inputs_;
    std::map<int, LiveState> states_;
};

}  // namespace cerebellum::testing
