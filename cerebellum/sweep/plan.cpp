#include "cerebellum/sweep/plan.h"

#include <algorithm>
#include <cmath>

#include "cerebellum/core/quant_type.h"

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

namespace {

void add_encodings(std::span<const ggml_type> types, std::span<const ggml_type> anchors, Rounding rounding,
                   TensorPlan& plan) {
    for (const auto type : types) plan.types.emplace_back(type, rounding);
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
        const auto types = admissible_types(*tensor, options.types, has_imatrix_entry(name));
        add_encodings(types, options.full ? types : choose_anchors(types), Rounding::ggml, entry);
        if (options.rounding != RoundingChoice::ggml) {
            std::vector<ggml_type> with_feedback;
            for (const auto type : types)
                if (options.takes_feedback(*tensor, type)) with_feedback.push_back(type);
            if (options.rounding == RoundingChoice::feedback)
                for (auto* list : {&entry.types, &entry.anchors})
                    std::erase_if(*list, [&](const Encoding& known) {
                        return std::ranges::find(with_feedback, known.type) != with_feedback.end();
                    });
            add_encodings(with_feedback, options.full ? with_feedback : choose_anchors(with_feedback),
                          Rounding::feedback, entry);
        }
        entry.anchor_stride = options.full ? 1 : 2;
        if (!entry.types.empty()) plan.push_back(std::move(entry));
    }
    return plan;
}

}  // namespace cerebellum
