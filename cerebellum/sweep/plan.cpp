#include "cerebellum/sweep/plan.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "cerebellum/core/quant_type.h"
#include "cerebellum/quantize/feedback_rounder.h"

namespace cerebellum {

std::vector<ggml_type> admissible_types(const TensorInfo& tensor, std::span<const ggml_type> allowed,
                                        bool has_imatrix_entry) {
    std::vector<ggml_type> candidates(allowed.begin(), allowed.end());
    if (candidates.empty()) {
        candidates = {GGML_TYPE_F16, GGML_TYPE_BF16};
        candidates.insert(candidates.end(), default_types().begin(), default_types().end());
    }
    std::vector<ggml_type> result;
    for (const auto type : candidates) {
        if (type == tensor.type || !type_is_quantizable(type) || !type_fits_row(type, tensor.row_length())) continue;
        if (type_size_bytes(type, tensor.row_length(), tensor.n_rows()) >= tensor.size_bytes) continue;
        if (type_needs_imatrix(type) && !has_imatrix_entry) continue;
        if (std::ranges::find(result, type) == result.end()) result.push_back(type);
    }
    std::ranges::stable_sort(result, std::greater<>{}, bits_per_weight);
    return result;
}

std::vector<ggml_type> choose_anchors(std::span<const ggml_type> types) {
    constexpr double marks_bits[] = {2.6, 4.5};
    std::vector<ggml_type> anchors;
    for (const double mark : marks_bits) {
        const auto nearest = std::ranges::min_element(
            types, {}, [&](ggml_type type) { return std::fabs(std::log(bits_per_weight(type) / mark)); });
        if (nearest != types.end() && std::ranges::find(anchors, *nearest) == anchors.end())
            anchors.push_back(*nearest);
    }
    return anchors;
}

std::vector<ggml_type> few_types(std::span<const ggml_type> types) {
    constexpr double marks_bits[] = {2.7, 3.4, 4.4, 5.5, 6.5, 8.5};
    // A type with a codebook has to be nearer by this factor: searching it takes several times as long.
    constexpr double slow = 4.0;
    std::vector<ggml_type> few;
    for (const double mark : marks_bits) {
        const auto nearest = std::ranges::min_element(types, {}, [&](ggml_type type) {
            const double distance = std::fabs(std::log(bits_per_weight(type) / mark));
            constexpr double next_to = 0.03;
            return (takes_feedback(type) ? 1.0 : slow) * (distance + next_to);
        });
        if (nearest != types.end()) few.push_back(*nearest);
    }
    if (!types.empty()) few.push_back(*std::ranges::min_element(types, {}, bits_per_weight));
    std::vector<ggml_type> result;
    std::ranges::copy_if(types, std::back_inserter(result),
                         [&](ggml_type type) { return std::ranges::find(few, type) != few.end(); });
    return result;
}

std::vector<std::size_t> spread_order(std::size_t n) {
    std::size_t bits = 0;
    while ((std::size_t{1} << bits) < n) ++bits;
    std::vector<std::size_t> order;
    for (std::size_t i = 0; i < std::size_t{1} << bits; ++i) {
        std::size_t reversed = 0;
        for (std::size_t b = 0; b < bits; ++b) reversed |= (i >> b & 1) << (bits - 1 - b);
        if (reversed < n) order.push_back(reversed);
    }
    return order;
}

namespace {

/// Each rounding has anchors of its own.
void add_encodings(std::span<const ggml_type> types, Rounding rounding, const PlanOptions& options, TensorPlan& plan) {
    for (const auto type : types) plan.types.emplace_back(type, rounding);
    auto anchors = options.full ? std::vector(types.begin(), types.end()) : choose_anchors(types);
    if (options.few && !options.full && anchors.size() > 1) anchors.erase(anchors.begin(), anchors.end() - 1);
    for (const auto type : anchors) plan.anchors.emplace_back(type, rounding);
}

}  // namespace

std::vector<TensorPlan> make_plan(const GgufFile& source, std::span<const std::string> quantizable,
                                  const std::function<bool(const std::string&)>& has_imatrix_entry,
                                  const PlanOptions& options) {
    std::vector<TensorPlan> plan;
    for (const auto& name : quantizable) {
        const auto* tensor = source.find(name);
        if (tensor == nullptr) continue;
        TensorPlan entry;
        entry.name = name;
        auto types = admissible_types(*tensor, options.types, has_imatrix_entry(name));
        if (options.few && options.types.empty()) types = few_types(types);
        std::vector<ggml_type> plain = types, with_feedback;
        if (options.rounding != RoundingChoice::ggml)
            std::ranges::copy_if(types, std::back_inserter(with_feedback),
                                 [&](ggml_type type) { return options.takes_feedback(*tensor, type); });
        if (options.rounding == RoundingChoice::feedback)
            std::erase_if(
                plain, [&](ggml_type type) { return std::ranges::find(with_feedback, type) != with_feedback.end(); });
        add_encodings(plain, Rounding::ggml, options, entry);
        add_encodings(with_feedback, Rounding::feedback, options, entry);
        entry.anchor_stride = options.full ? 1 : 2;
        if (!entry.types.empty()) plan.push_back(std::move(entry));
    }
    return plan;
}

}  // namespace cerebellum
