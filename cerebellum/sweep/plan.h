#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "cerebellum/core/encoding.h"
#include "cerebellum/gguf/gguf_file.h"

namespace cerebellum {

/// What is to be measured of one tensor.
struct TensorPlan {
    std::string name;
    std::vector<Encoding> types;    // all admissible ones, falling in size
    std::vector<Encoding> anchors;  // of these, measured by a replay to the end of the model
    /// Anchors are replayed on one window in so many only: what they give, the gain, is a ratio of two figures of the
    /// same windows and varies far less between windows than either.
    std::size_t anchor_stride = 1;
    /// Measured on the first so many windows; 0: on all. A tensor may have several entries, for different types.
    std::size_t windows = 0;
    /// Anchors are replayed on the first so many windows; 0: by the stride.
    std::size_t full_windows = 0;

    /// How many of the first windows the fast tier and the anchors see, of those that there are.
    std::size_t fast_windows(std::size_t available) const {
        return windows == 0 ? available : std::min(windows, available);
    }
    std::size_t anchor_windows(std::size_t available) const {
        if (full_windows > 0) return std::min(full_windows, available);
        return (fast_windows(available) + anchor_stride - 1) / anchor_stride;
    }
};

struct PlanOptions {
    std::vector<ggml_type> types;  // allowed at all; empty for the default ones
    bool full = false;             // every type is an anchor
    bool few = false;              // only few_types() of a tensor, and one anchor
    RoundingChoice rounding = RoundingChoice::ggml;
    /// Whether a tensor of this type can be rounded with feedback; asked unless rounding is ggml's.
    std::function<bool(const TensorInfo&, ggml_type)> takes_feedback;
};

/// Which types a tensor can be stored in: the shape admits them, they are smaller than the source, and there is an
/// importance matrix entry where ggml insists on one. The source's own type is not among them: it does no damage.
std::vector<ggml_type> admissible_types(const TensorInfo& tensor, std::span<const ggml_type> allowed,
                                        bool has_imatrix_entry);

/// Anchors: the types nearest to a few marks on the scale of bits per weight, so that the gain is known where recipes
/// at common budgets are found.
std::vector<ggml_type> choose_anchors(std::span<const ggml_type> types);

/// A few of a tensor's types, falling in size, for a first look: the nearest to marks from 2.7 to 8.5 bits per weight,
/// of those that are quickly quantized (without codebooks) where they are about as near, and the smallest one of all,
/// so that every size that can be had at all can still be had.
std::vector<ggml_type> few_types(std::span<const ggml_type> types);

/// The numbers below n in an order of which every first part is spread over the whole (bit reversal). Windows of text
/// are measured in this order, so that any number of them stands for all, and figures of the first n windows of one
/// pair can be compared with those of another.
std::vector<std::size_t> spread_order(std::size_t n);

std::vector<TensorPlan> make_plan(const GgufFile& source, std::span<const std::string> quantizable,
                                  const std::function<bool(const std::string&)>& has_imatrix_entry,
                                  const PlanOptions& options);

}  // namespace cerebellum
