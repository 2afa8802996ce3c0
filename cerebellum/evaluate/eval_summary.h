#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "cerebellum/evaluate/audit_log.h"
#include "cerebellum/evaluate/proportions.h"

namespace cerebellum {

/// A metric over the questions of a log.
struct MetricSummary {
    double mean = 0.0;
    Interval interval;  // 95 %: Wilson's where every value is 0 or 1, else from the standard error
    int questions = 0;
    bool binary = true;
};

/// Two files on the questions that both answered.
struct PairedMetric {
    int questions = 0;
    int only_first = 0;
    int only_second = 0;
    double p = 1.0;  // McNemar, exact
};

/// Which of the comparisons with one file show a difference: Holm's adjusted p-values below 5 %.
std::vector<bool> significant(std::span<const double> p_values);

/// How answers look that deserve a second look.
struct AuditFindings {
    int questions = 0;
    std::vector<std::string> unparsed;                                // ids; answers that are there but name no choice
    std::vector<std::string> empty;                                   // ids; answers that are empty or white space
    std::map<std::string, std::vector<std::string>> identical_wrong;  // raw answer → ids, three or more of them

    double unparsed_share() const;
};

/// Most unparsed answers (empty ones among them) that a summary may be published with.
constexpr double publishable_unparsed_share = 0.005;

std::map<std::string, MetricSummary> summarise_metrics(const std::vector<nlohmann::json>& records);
/// Empty where the metric is not of right and wrong alone. Throws Error where a question was put to the files in
/// different words.
std::map<std::string, PairedMetric> compare_metrics(const AuditFile& first, const AuditFile& second);
AuditFindings audit(const AuditFile& log);
/// The whole summary: header, metrics, groups, findings. Throws Error where there are too many unparsed answers, or
/// questions that the header promises are missing.
nlohmann::json make_summary(const AuditFile& log);

}  // namespace cerebellum
