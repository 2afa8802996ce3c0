#include "cerebellum/replay/change_probe.h"

#include <algorithm>
#include <cstring>

namespace cerebellum {

namespace {

std::vector<float> floats(const std::vector<std::byte>& bytes) {
    std::vector<float> values(bytes.size() / sizeof(float));
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
}

}  // namespace

Slice::Tail ChangeProbe::append(int cut, ggml_context* context, const Slice::Clone& clone) {
    Slice::Tail tail;
    const auto n_tokens = topology_->graph().n_tokens;
    for (const int root : topology_->live_set(cut)) {
        auto* after = clone(root);
        if (after == nullptr || after->type != GGML_TYPE_F32 || !ggml_is_contiguous(after)) continue;
        auto* before = ggml_dup_tensor(context, after);
        tail.inputs.push_back(before);
        auto* change = ggml_sqr(context, ggml_sub(context, after, before));
        auto* energy = ggml_sqr(context, before);
        // One sum per token where the tensor has a row per token, one for everything else (recurrent states).
        const bool per_token = after->ne[1] == n_tokens && ggml_nelements(after) % n_tokens == 0;
        const auto n_rows = per_token ? n_tokens : 1;
        for (auto* squares : {change, energy})
            tail.outputs.push_back(
                ggml_sum_rows(context, ggml_reshape_2d(context, squares, ggml_nelements(squares) / n_rows, n_rows)));
        parts_.push_back({root, per_token});
    }
    return tail;
}

std::vector<Value> ChangeProbe::inputs(const LiveState& source) const {
    std::vector<Value> values;
    for (const auto& part : parts_) values.push_back(source.values.at(part.root));
    return values;
}

double ChangeProbe::relative_energy(std::span<const Value> tail, int first) const {
    const auto n_tokens = static_cast<std::size_t>(topology_->graph().n_tokens);
    std::vector<double> change(n_tokens), energy(n_tokens);
    double elsewhere = 0.0;
    for (std::size_t i = 0; i < parts_.size(); ++i) {
        const auto changes = floats(read(*tail[2 * i]));
        const auto energies = floats(read(*tail[2 * i + 1]));
        if (std::ranges::all_of(changes, [](float value) { return value == 0.0F; })) continue;
        if (!parts_[i].per_token) {
            if (energies[0] != 0.0F) elsewhere += static_cast<double>(changes[0]) / static_cast<double>(energies[0]);
            continue;
        }
        for (std::size_t token = 0; token < n_tokens; ++token) {
            change[token] += static_cast<double>(changes[token]);
            energy[token] += static_cast<double>(energies[token]);
        }
    }
    double sum = 0.0;
    for (auto token = static_cast<std::size_t>(first); token + 1 < n_tokens; ++token)
        sum += elsewhere + (energy[token] == 0.0 ? 0.0 : change[token] / energy[token]);  // a NaN stays one
    return sum;
}

}  // namespace cerebellum
