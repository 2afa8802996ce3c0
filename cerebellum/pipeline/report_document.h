#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <vector>

#include "cerebellum/allocate/constraints.h"
#include "cerebellum/pipeline/aim.h"

namespace cerebellum {

/// Stored results that a report is made of. Only the journal is a must.
struct ReportSources {
    std::filesystem::path journal;
    std::optional<std::filesystem::path> model;   // its header: exact sizes, and what the stock mixes come to
    std::optional<std::filesystem::path> recipe;  // of the delivered file
    std::vector<std::filesystem::path> results;   // of quantize, verify and evaluations: JSON objects, passed on
    Aim aim;                                      // of the page's allocations
    Constraints constraints;                      // the same
};

/// Everything that the report's page shows, as docs/report.md describes it; deterministic. Throws Error where a source
/// cannot be read, the journal holds nothing, or recipe, model and journal do not belong together. A limited number of
/// types is a constraint that the page does not allocate by; it says so.
nlohmann::json report_document(const ReportSources& sources);

/// The page with that document in it, complete or not at all. Returns its size in bytes.
std::uint64_t write_report(const std::filesystem::path& path, const ReportSources& sources);

}  // namespace cerebellum
