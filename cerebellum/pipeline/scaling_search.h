#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "cerebellum/core/channel_scaling.h"
#include "cerebellum/pipeline/session.h"

namespace cerebellum {

/// What was found at one place where channels can be scaled.
struct ScalingFinding {
    std::string producer;
    std::vector<std::string> readers;
    /// Of the root mean squares of the channels and of the readers' columns, whose quotient the factors follow; both 0:
    /// nothing is scaled.
    double channel_power = 0.0, column_power = 0.0;
    /// Change of the block's output with the readers quantized, scaled against unscaled, geometric mean over types;
    /// on windows that the power was chosen on, and on others, with a standard error.
    double chosen_ratio = 1.0;
    double judged_ratio = 1.0;
    double judged_error = 0.0;  ///< of the logarithm
};

struct ScalingSearch {
    std::vector<ChannelScaling> scalings;  ///< of the findings that are better on text they were not chosen on
    std::vector<ScalingFinding> findings;
};

/// Searches, place by place, for the factors under which quantizing what reads the channels changes the block's output
/// least: powers of the channels' root mean squares over powers of the columns' (AWQ's), rounded to powers of two. The
/// readers are quantized in two types, about 2.6 and 4.5 bits per weight, with the session's rounding, and the block is
/// replayed. What is not better by its standard error on windows other than those it was chosen on is left alone.
/// Throws UsageError where the model is not replayed.
ScalingSearch search_scaling(Session& session, Progress& progress);

nlohmann::json to_json(const ScalingSearch& search);
/// Throws Error where the text is none.
ScalingSearch scaling_search_from_json(std::string_view text);

}  // namespace cerebellum
