#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cerebellum/evaluate/audit_log.h"

namespace cerebellum {

/// What judging stored answers again changed.
struct Rejudgement {
    std::vector<std::string> changed;  // ids of records that are parsed or judged differently
    double old_score = 0.0;            // shares of right answers
    double new_score = 0.0;
};

/// Judges every stored answer again by `judge(record)`, which sets "parsed", "correct" and "metrics" from "raw". Throws
/// Error where the log has no raw answers: probabilities of choices are not parsed.
Rejudgement rejudge(AuditFile& log, const std::function<void(nlohmann::json&)>& judge);

}  // namespace cerebellum
