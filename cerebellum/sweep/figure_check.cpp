#include "cerebellum/sweep/figure_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>

namespace cerebellum {

namespace {

constexpr double most_times_neighbours = 1e4;
constexpr double most_negative_kld = -1e-4;  // nats per position; what float sums of a vocabulary may come to
constexpr double same_relative = 0.01;
constexpr double same_energy = 1e-10, same_kld = 1e-6;  // per position

bool stands_out(double value, double below, double above) {
    return value > most_times_neighbours * below && value > most_times_neighbours * above;
}

bool same(std::span<const double> a, std::span<const double> b, std::span<const double> counts, double floor) {
    if (a.size() != b.size()) return false;
    for (std::size_t w = 0; w < a.size(); ++w) {
        const double most = std::max(std::fabs(a[w]), std::fabs(b[w]));
        if (!(std::fabs(a[w] - b[w]) <= same_relative * most + floor * counts[w])) return false;
    }
    return true;
}

void dequantize(ggml_type type, const std::byte* row, std::span<float> floats) {
    if (type == GGML_TYPE_F32)
        std::memcpy(floats.data(), row, floats.size_bytes());
    else
        ggml_get_type_traits(type)->to_float(row, floats.data(), static_cast<std::int64_t>(floats.size()));
}

}  // namespace

std::string why_wrong(const Measurement& measured) {
    if (!is_finite(measured)) return "is not a finite number";
    if (std::ranges::any_of(measured.counts, [](double count) { return count <= 0.0; })) return "was scored nowhere";
    for (std::size_t w = 0; w < measured.kld.size(); ++w)
        if (measured.kld[w] < most_negative_kld * measured.counts[w])
            return fmt::format("is negative ({:.3g} nats per token)", measured.kld[w] / measured.counts[w]);
    return "";
}

std::vector<std::size_t> outliers(std::span<const TypeFigure> figures) {
    std::vector<std::size_t> order(figures.size()), found;
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::stable_sort(order, {}, [&](std::size_t i) { return figures[i].bits; });
    const auto n = order.size();
    const auto value = [&](std::size_t place) { return figures[order[place]].value; };
    const bool all_zero = std::ranges::all_of(figures, [](const TypeFigure& figure) { return figure.value == 0.0; });
    for (std::size_t i = 0; i < n && n > 1; ++i) {
        if (value(i) == 0.0 && !all_zero) found.push_back(order[i]);
        if (n == 2 && i == 0) continue;
        const auto one = i == 0 ? 1 : i - 1;
        const auto other = i == 0 ? 2 : i + 1 < n ? i + 1 : n == 2 ? 0 : i - 2;
        if (stands_out(value(i), value(one), value(other))) found.push_back(order[i]);
    }
    std::ranges::sort(found);
    return found;
}

bool repeats(const Measurement& first, const Measurement& second) {
    return same(first.local_energy, second.local_energy, first.local_counts, same_energy) &&
           same(first.kld, second.kld, first.counts, same_kld);
}

bool is_finite(const Topology& topology, const LiveState& state) {
    for (const auto& [root, value] : state.values) {
        if (topology.graph().tensors[static_cast<std::size_t>(root)].type != GGML_TYPE_F32) continue;
        const auto bytes = read(*value);
        std::vector<float> floats(bytes.size() / sizeof(float));
        std::memcpy(floats.data(), bytes.data(), floats.size() * sizeof(float));
        if (!std::ranges::all_of(floats, [](float x) { return std::isfinite(x); })) return false;
    }
    return true;
}

bool is_lossless(const ggml_tensor& weight, ggml_type type, std::span<const std::byte> bytes) {
    const auto row_length = static_cast<std::size_t>(weight.ne[0]);
    const auto old_row = ggml_row_size(weight.type, weight.ne[0]), new_row = ggml_row_size(type, weight.ne[0]);
    std::vector<float> before(row_length), after(row_length);
    const auto* data = static_cast<const std::byte*>(weight.data);
    for (std::size_t row = 0; row < static_cast<std::size_t>(ggml_nrows(&weight)); ++row) {
        dequantize(weight.type, data + row * old_row, before);
        dequantize(type, bytes.data() + row * new_row, after);
        if (before != after) return false;
    }
    return true;
}

}  // namespace cerebellum
