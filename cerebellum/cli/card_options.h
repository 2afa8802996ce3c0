#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "cerebellum/pipeline/card_facts.h"

namespace cerebellum::cli {

/// What a card says that nobody can measure.
void add_card_settings(CLI::App& command, CardSettings& settings);

/// Where the results lie that a card is made of, as 'quantize' leaves them beside its output.
std::filesystem::path facts_path(const std::filesystem::path& file);
std::filesystem::path findings_path(const std::filesystem::path& file);
std::filesystem::path serving_path(const std::filesystem::path& file);
std::filesystem::path report_path(const std::filesystem::path& file);
/// The same of what 'publish' evaluates.
std::filesystem::path divergence_path(const std::filesystem::path& file);
std::filesystem::path speed_path(const std::filesystem::path& file);

}  // namespace cerebellum::cli
