#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <vector>

#include "cerebellum/evaluate/figures.h"
#include "cerebellum/pipeline/session.h"
#include "cerebellum/pipeline/whole_prediction.h"

namespace cerebellum {

/// A built file against its source, on the test part of the session's text.
struct VerifiedFile {
    std::filesystem::path path;
    std::uint64_t bytes = 0;
    double bpw = 0.0;
    std::string sha256;
    std::string source_fingerprint;
    Figures figures;
    std::optional<WholePrediction> prediction;  // empty where the journal does not know some type of the file
};

/// Runs each file with libllama, where the session's replays run. Throws Error where one cannot be opened or is of
/// another model.
std::vector<VerifiedFile> verify_files(Session& session, const std::vector<std::filesystem::path>& files,
                                       Progress& progress);

nlohmann::json to_json(const std::vector<VerifiedFile>& files);

}  // namespace cerebellum
