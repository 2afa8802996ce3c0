#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cerebellum/core/progress.h"
#include "cerebellum/evaluate/eval_summary.h"

namespace cerebellum::cli {

/// Where the log of this benchmark and file lies. Makes the folder. Throws Error where log, summary or samples would
/// replace the questions.
std::filesystem::path log_path(const std::string& out, const std::string& benchmark, const nlohmann::json& model,
                               const std::filesystem::path& questions);
/// summary.json beside the log.
std::filesystem::path summary_path(const std::filesystem::path& log);

/// EvalPlus' samples beside the log of a code benchmark.
std::filesystem::path samples_path(const std::filesystem::path& log);

/// Writes the summary beside the log. Where it must not be published, an earlier one is taken away and `refusal` says
/// why; `summary` is the log's header then.
struct Publication {
    nlohmann::json summary;
    std::string refusal;
};
Publication publish_summary(const std::filesystem::path& log, const AuditFile& answers);

/// A file's answers and their place.
struct EvaluatedFile {
    std::filesystem::path log;
    AuditFile answers;
};

/// Writes the summaries and prints a table (or JSON) of all files, each also compared with the first. Returns the exit
/// code: 1 where a summary could not be published, after a warning that says why.
int report_evaluations(const std::vector<EvaluatedFile>& files, bool json, Progress& progress);

}  // namespace cerebellum::cli
