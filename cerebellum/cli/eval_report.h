#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cerebellum/core/progress.h"
#include "cerebellum/evaluate/eval_summary.h"

namespace cerebellum::cli {

/// "model": name, bytes and SHA-256 of a file, for the header of a log. Hashing a large file takes its time.
nlohmann::json model_identity(const std::filesystem::path& path, Progress& progress);
/// Where the log of this benchmark and file lies. Makes the folder.
std::filesystem::path log_path(const std::string& out, const std::string& benchmark, const nlohmann::json& model);
/// summary.json beside the log.
std::filesystem::path summary_path(const std::filesystem::path& log);

/// A file's answers and their place.
struct EvaluatedFile {
    std::filesystem::path log;
    AuditFile answers;
};

/// Writes the summaries and prints a table (or JSON) of all files, each also compared with the first. Returns the exit
/// code: 1 where a summary could not be published, after a warning that says why.
int report_evaluations(const std::vector<EvaluatedFile>& files, bool json, Progress& progress);

}  // namespace cerebellum::cli
