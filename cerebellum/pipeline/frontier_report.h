#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cerebellum/allocate/constraints.h"
#include "cerebellum/allocate/frontier.h"
#include "cerebellum/pipeline/measured_model.h"

namespace cerebellum {

/// A stock mix beside the frontier.
struct PresetMark {
    std::string name;
    std::uint64_t bytes = 0;
    std::optional<double> kld;                    // predicted; empty where one of its types was not measured
    std::size_t unmeasured = 0;                   // tensors that it changes and that `kld` knows nothing of
    std::optional<double> frontier_kld;           // predicted for our file of at most its size
    std::optional<std::uint64_t> same_kld_bytes;  // of our file that is predicted to do no more damage
};

struct FrontierReport {
    Frontier frontier;
    std::vector<FrontierPoint> points;
    std::vector<std::size_t> knees;  // indices of points
    std::vector<PresetMark> presets;
    std::string constraints;  // as the user wrote them
};

/// Solves for all sizes at once and asks libllama what its stock mixes come to.
FrontierReport make_frontier(const MeasuredModel& measured, const Constraints& constraints);

/// Everything: the smallest file's types, every step, knees and presets. Types of any file on the frontier follow from
/// it.
nlohmann::json to_json(const FrontierReport& report, const MeasuredModel& measured);

}  // namespace cerebellum
