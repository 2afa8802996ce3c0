#include "cerebellum/quantize/feedback_rounder.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>

#include "cerebellum/core/error.h"
#include "cerebellum/quantize/feedback.h"
#include "cerebellum/quantize/quantize_tensor.h"
#include "cerebellum/quantize/scale_rows.h"

namespace cerebellum {

bool takes_feedback(ggml_type type) {
    return find_codec(type) != nullptr;
}

bool takes_feedback(const TensorInfo& tensor, ggml_type type) {
    return takes_feedback(type) && InputMetric::admits(tensor.row_length());
}

MomentReader scaled_moments(MomentReader moments, std::map<std::string, TensorScaling> scaling) {
    if (scaling.empty()) return moments;
    return
        [moments = std::move(moments), scaling = std::move(scaling)](const std::string& weight, std::int64_t matrix) {
            auto lower_triangle = moments(weight, matrix);
            if (const auto found = scaling.find(weight); found != scaling.end() && !lower_triangle.empty())
                scale_moments(found->second.inputs, lower_triangle);
            return lower_triangle;
        };
}

void FeedbackRounder::improve_rows(const TensorInfo& tensor, std::span<const std::byte> source, ggml_type type,
                                   std::int64_t first_row, std::span<std::byte> rows) {
    assert(takes_feedback(tensor, type));
    const auto* codec = find_codec(type);
    const auto row_bytes = ggml_row_size(type, tensor.row_length());
    const auto source_row = ggml_row_size(tensor.type, tensor.row_length());
    const auto end = first_row + static_cast<std::int64_t>(rows.size() / row_bytes);
    for (auto row = first_row; row < end;) {
        const auto matrix = row / tensor.shape[1];
        const auto stop = std::min(end, (matrix + 1) * tensor.shape[1]);
        const auto read = [&](std::int64_t at, std::span<float> weights) {
            dequantize_rows(tensor.type,
                            source.subspan(static_cast<std::size_t>(row - first_row + at) * source_row, source_row),
                            weights);
        };
        const auto shared = metric(tensor, matrix);
        round_with_feedback(*codec, *shared->metric, read,
                            rows.subspan(static_cast<std::size_t>(row - first_row) * row_bytes,
                                         static_cast<std::size_t>(stop - row) * row_bytes),
                            threads_);
        row = stop;
    }
}

std::shared_ptr<FeedbackRounder::SharedMetric> FeedbackRounder::metric(const TensorInfo& tensor, std::int64_t matrix) {
    std::shared_ptr<SharedMetric> shared;
    {
        const std::lock_guard lock(mutex_);
        std::erase_if(under_way_, [](const auto& entry) { return entry.second.expired(); });
        auto& known = under_way_[{tensor.name, matrix}];
        shared = known.lock();
        if (!shared) known = shared = std::make_shared<SharedMetric>();
        last_ = shared;
    }
    std::call_once(shared->once, [&] {
        const auto moments = [&] {
            const std::lock_guard lock(reading_);
            return read_moments_(tensor.name, matrix);
        }();
        const auto n = tensor.row_length();
        if (moments.size() != static_cast<std::size_t>(n * (n + 1) / 2))
            throw Error(
                fmt::format("cannot round {} with feedback: there are no second moments that fit it; collect them "
                            "from this model",
                            tensor.name));
        shared->metric = std::make_unique<const InputMetric>(moments, n);
    });
    return shared;
}

}  // namespace cerebellum
