#pragma once

#include <filesystem>
#include <span>
#include <vector>

#include "cerebellum/calibrate/text.h"
#include "cerebellum/core/progress.h"
#include "cerebellum/evaluate/figures.h"

namespace cerebellum {

/// Scores built files as a runtime sees them: each loaded afresh by libllama and evaluated next to the source on the
/// same windows. One vector of window scores per file. On devices the source is loaded there, too, so that both have
/// the same arithmetic; files that do not fit there together are taken one after the other.
std::vector<std::vector<WindowScore>> score_files(const Model& source, std::span<const std::filesystem::path> files,
                                                  const TokenWindows& windows, int threads, Progress& progress,
                                                  const RunPlace& place = {});

}  // namespace cerebellum
