#include "cerebellum/predict/transfer.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <iterator>
#include <random>

#include "cerebellum/core/quant_type.h"

namespace cerebellum {

namespace {

struct SlowType {
    ggml_type type;
    double rounding_error;
};

constexpr SlowType slow_to_set_up[] = {{GGML_TYPE_IQ2_S, 0.06320},
                                       {GGML_TYPE_IQ2_XS, 0.09062},
                                       {GGML_TYPE_IQ2_XXS, 0.1180},
                                       {GGML_TYPE_IQ1_M, 0.2049},
                                       {GGML_TYPE_IQ1_S, 0.2384}};

}  // namespace

double measure_rounding_error(ggml_type type) {
    if (type == GGML_TYPE_F32) return 0.0;
    constexpr std::int64_t columns = 256;
    constexpr std::int64_t rows = 64;
    std::vector<float> weights(columns * rows), back(weights.size());
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0.0F, 1.0F);
    for (float& weight : weights) weight = normal(random);
    const std::vector<float> importances(columns, 1.0F);
    std::vector<std::byte> bytes(type_size_bytes(type, columns, rows));
    ggml_quantize_chunk(type, weights.data(), bytes.data(), 0, rows, columns, importances.data());
    ggml_get_type_traits(type)->to_float(bytes.data(), back.data(), columns * rows);
    double error = 0.0, size = 0.0;
    for (std::size_t i = 0; i < weights.size(); ++i) {
        const double difference = static_cast<double>(weights[i]) - static_cast<double>(back[i]);
        error += difference * difference;
        size += static_cast<double>(weights[i]) * static_cast<double>(weights[i]);
    }
    return error / size;
}

double rounding_error(ggml_type type) {
    const auto* slow = std::ranges::find(slow_to_set_up, type, &SlowType::type);
    if (slow != std::end(slow_to_set_up)) return slow->rounding_error;
    static std::map<ggml_type, double> known;
    const auto [entry, is_new] = known.try_emplace(type, 0.0);
    if (is_new) entry->second = measure_rounding_error(type);
    return entry->second;
}

double rounding_error(const ForeignType& type) {
    if (type.type && type_is_quantizable(*type.type)) return rounding_error(*type.type);
    // Types of equal size: the better one.
    std::map<double, double> log_errors;
    for (const auto candidate : default_types()) {
        const double log_error = std::log(rounding_error(candidate));
        const auto [entry, is_new] = log_errors.try_emplace(bits_per_weight(candidate), log_error);
        if (!is_new) entry->second = std::min(entry->second, log_error);
    }
    const auto above = log_errors.lower_bound(type.bits_per_weight);
    if (above == log_errors.begin()) return std::exp(above->second);
    if (above == log_errors.end()) return std::exp(log_errors.rbegin()->second);
    const auto below = std::prev(above);
    const double t = (type.bits_per_weight - below->first) / (above->first - below->first);
    return std::exp(below->second + t * (above->second - below->second));
}

Sensitivity::Sensitivity(std::vector<Point> points) {
    std::ranges::sort(points, {}, &Point::log_error);
    for (std::size_t i = 0; i < points.size();) {
        Point mean{points[i].log_error, 0.0};
        std::size_t n = 0;
        for (; i < points.size() && points[i].log_error == mean.log_error; ++i, ++n)
            mean.sensitivity += points[i].sensitivity;
        mean.sensitivity /= static_cast<double>(n);
        points_.push_back(mean);
    }
}

double Sensitivity::at(double error) const {
    const double log_error = std::log(error);
    const auto above = std::ranges::find_if(points_, [&](const Point& p) { return p.log_error >= log_error; });
    if (above == points_.begin()) return points_.front().sensitivity;
    if (above == points_.end()) return points_.back().sensitivity;
    const auto& below = *(above - 1);
    const double t = (log_error - below.log_error) / (above->log_error - below.log_error);
    return below.sensitivity + t * (above->sensitivity - below.sensitivity);
}

double Sensitivity::damage(double error, double baseline_error) const {
    const auto from_original = [&](double e) { return e > 0.0 ? at(e) * e : 0.0; };
    return from_original(error) - from_original(baseline_error);
}

std::map<std::string, Sensitivity> sensitivities(const DamageTable& table,
                                                 const std::map<std::string, ggml_type>& baseline_types,
                                                 std::map<std::string, double>* smallest_bits) {
    std::map<std::string, std::vector<Sensitivity::Point>> points;
    for (const auto& row : table.rows) {
        const auto type = parse_foreign_type(row.type);
        if (!type || type->ternary) continue;
        const auto baseline = baseline_types.find(row.tensor);
        if (baseline != baseline_types.end() && type->type == baseline->second) continue;
        const double error = rounding_error(*type);
        const double baseline_error = baseline == baseline_types.end() ? 0.0 : rounding_error(baseline->second);
        const double moved = table.metric == Metric::kld ? error + baseline_error : error - baseline_error;
        if (moved <= 0.0) continue;
        points[row.tensor].push_back({std::log(error), std::max(0.0, row.value(table.metric)) / moved});
        if (smallest_bits != nullptr) {
            const auto [entry, is_new] = smallest_bits->try_emplace(row.tensor, type->bits_per_weight);
            if (!is_new) entry->second = std::min(entry->second, type->bits_per_weight);
        }
    }
    std::map<std::string, Sensitivity> result;
    for (auto& [tensor, of_tensor] : points) result.emplace(tensor, Sensitivity(std::move(of_tensor)));
    return result;
}

void BlockMeans::add(int block, double value) {
    auto& [sum, count] = sums_[block];
    sum += value;
    ++count;
}

double BlockMeans::at(int block) const {
    const auto mean = [](const auto& entry) { return entry.second.first / entry.second.second; };
    const auto above = sums_.lower_bound(block);
    if (above == sums_.end()) return mean(*sums_.rbegin());
    if (above->first == block || above == sums_.begin()) return mean(*above);
    const auto below = std::prev(above);
    const double t = static_cast<double>(block - below->first) / static_cast<double>(above->first - below->first);
    return mean(*below) + t * (mean(*above) - mean(*below));
}

}  // namespace cerebellum
