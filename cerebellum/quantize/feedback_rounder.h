#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/quantize/input_metric.h"

namespace cerebellum {

/// Whether the type's integers can be chosen with error feedback.
bool takes_feedback(ggml_type type);
/// Whether a matrix of that type and shape can: the second moments must fit into memory too.
bool takes_feedback(const TensorInfo& tensor, ggml_type type);

/// The lower triangle of Σ x xᵀ for one matrix of a weight; empty where nothing is known of it.
using MomentReader = std::function<std::vector<float>(const std::string& weight, std::int64_t matrix)>;

/// Improves tensors that ggml has quantized, with the moments of their inputs. Keeps what it made of one matrix's
/// moments, for the next rows or the next type of the same one. Threads may share it; they wait for each other.
class FeedbackRounder {
  public:
    FeedbackRounder(MomentReader read_moments, int threads)
        : read_moments_(std::move(read_moments)), threads_(threads) {}

    /// Rows [first_row, …) of a tensor as quantize_rows made them; `source` is the data of the whole tensor, which
    /// takes_feedback in that type. Throws Error where there are no moments of its size.
    void improve_rows(const TensorInfo& tensor, std::span<const std::byte> source, ggml_type type,
                      std::int64_t first_row, std::span<std::byte> rows);

  private:
    const InputMetric& metric(const TensorInfo& tensor, std::int64_t matrix);

    std::mutex mutex_;
    MomentReader read_moments_;
    int threads_;
    std::string weight_;  // whose metric is kept
    std::int64_t matrix_ = -1;
    std::unique_ptr<InputMetric> metric_;
};

}  // namespace cerebellum
