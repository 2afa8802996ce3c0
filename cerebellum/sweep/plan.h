#pragma once

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
    /// Anchors are replayed on every so-manieth window only: what they give, the gain, is a ratio of two figures of the
    /// same windows and varies far less between windows than either.
    std::size_t anchor_stride = 1;
};

struct PlanOptions {
    std::vector<ggml_type> types;  // allowed at all; empty for the default ones
    bool full = false;             // every type is an anchor
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

std::vector<TensorPlan> make_plan(const GgufFile& source, std::span<const std::string> quantizable,
                                  const std::function<bool(const std::string&)>& has_imatrix_entry,
                                  const PlanOptions& options);

}  // namespace cerebellum
