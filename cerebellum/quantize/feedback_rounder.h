#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cerebellum/core/channel_scaling.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/quantize/input_metric.h"

namespace cerebellum {

/// Whether the type's integers can be chosen with error feedback.
bool takes_feedback(ggml_type type);
/// Whether a matrix of that type and shape can: the second moments must fit into memory too.
bool takes_feedback(const TensorInfo& tensor, ggml_type type);

/// The lower triangle of Σ x xᵀ for one matrix of a weight; empty where nothing is known of it.
using MomentReader = std::function<std::vector<float>(const std::string& weight, std::int64_t matrix)>;

/// The moments of inputs that are divided as the scaling says, from those of the source as it is.
MomentReader scaled_moments(MomentReader moments, std::map<std::string, TensorScaling> scaling);

/// Improves tensors that ggml has quantized, with the moments of their inputs. Keeps what it made of the last matrix's
/// moments, for the next rows or the next type of the same one. Threads may share it: those at work on the same matrix
/// share its metric, and only reading moments is done by one at a time.
class FeedbackRounder {
  public:
    FeedbackRounder(MomentReader read_moments, int threads)
        : read_moments_(std::move(read_moments)), threads_(threads) {}

    /// Rows [first_row, …) of a tensor as quantize_rows made them; `source` is the data of the same rows of the source.
    /// The tensor takes_feedback in that type. Throws Error where there are no moments of its size.
    void improve_rows(const TensorInfo& tensor, std::span<const std::byte> source, ggml_type type,
                      std::int64_t first_row, std::span<std::byte> rows);

  private:
    /// Made by the first thread that asks for it, while others who want the same one wait.
    struct SharedMetric {
        std::once_flag once;
        std::unique_ptr<const InputMetric> metric;
    };
    using Key = std::pair<std::string, std::int64_t>;  // weight and matrix

    std::shared_ptr<SharedMetric> metric(const TensorInfo& tensor, std::int64_t matrix);

    MomentReader read_moments_;
    int threads_;
    std::mutex reading_;
    std::mutex mutex_;  // of what follows
    std::map<Key, std::weak_ptr<SharedMetric>> under_way_;
    std::shared_ptr<SharedMetric> last_;
};

}  // namespace cerebellum
