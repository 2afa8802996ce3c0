#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cerebellum/predict/tensor_list.h"

namespace cerebellum {

/// The figure that damage is counted in.
enum class Metric { kld, nll };

/// One figure that was measured elsewhere: what the model loses with this tensor in this type. Nats per token; NaN
/// where the file does not have it.
struct DamageRow {
    std::string tensor;
    std::string type;   ///< as the file calls it, which need not be a type of ggml's
    std::string where;  ///< "test 'blk_0_ffn_up'", "row 2, column 17": for messages
    double kld = std::numeric_limits<double>::quiet_NaN();
    double kld_error = std::numeric_limits<double>::quiet_NaN();
    double delta_nll = std::numeric_limits<double>::quiet_NaN();

    double value(Metric metric) const { return metric == Metric::kld ? kld : delta_nll; }
};

/// The model that an export of ours was measured on.
struct ExportedModel {
    TensorList baseline;  ///< shapes, and the types of the baseline
    std::map<std::string, ggml_type> source_types;
    std::uint64_t fixed_bytes = 0;  ///< of the file, beside tensor data
    std::string name;
    std::string fingerprint;  ///< of the source
};

/// Imported measurements; importing checks them as a whole, so that either all or nothing is there. Each pair of
/// tensor and type occurs once.
struct DamageTable {
    std::string origin;
    Metric metric = Metric::kld;
    std::vector<DamageRow> rows;
    std::vector<std::string> missing;  ///< places that say of themselves that nothing was measured
    std::vector<std::string> unread;   ///< tensors whose crushing changed nothing at all: nothing reads them
    std::vector<std::string> skipped;  ///< tensors that the sweep could not or need not measure, with the reason
    std::vector<std::string> notes;    ///< what was assumed while reading
    /// What the baseline's tensors were stored in: not known from most files.
    std::optional<ExportedModel> model;
    /// The file tells one type per tensor, which all its rows were crushed to, from a quantized baseline.
    bool is_crush_sweep = false;
};

/// Throws Error naming tensor and place where the model does not have a tensor of the table. `contains` is asked for
/// every name; `model` names the model in the message.
void check_names(const DamageTable& table, const std::function<bool(const std::string&)>& contains,
                 std::string_view model);

/// Throws Error naming both places where a pair of tensor and type occurs twice, and says whether the two contradict
/// each other. For importers.
void check_unique(const DamageTable& table);

}  // namespace cerebellum
