#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "cerebellum/core/output_guard.h"
#include "cerebellum/pipeline/quantize.h"
#include "cerebellum/pipeline/session.h"

namespace cerebellum {

/// Every file that a model consists of: itself, all files of a split model, or what belongs to the model in the folder
/// of a Hugging Face model.
std::vector<std::filesystem::path> files_of_model(const std::filesystem::path& model);

/// Says that a command reads a model, or works with a journal and what lies beside it.
void guard_model(OutputGuard& guard, const std::string& role, const std::filesystem::path& model);
void guard_journal(OutputGuard& guard, const std::filesystem::path& journal);

/// What a measuring run reads, and its journal.
void guard_run(OutputGuard& guard, const RunOptions& run);
/// All that quantize_model reads and writes.
OutputGuard files_of_job(const RunOptions& run, const QuantizeOptions& options);

}  // namespace cerebellum
