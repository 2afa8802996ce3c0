#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "cerebellum/core/progress.h"
#include "cerebellum/journal/journal.h"

namespace cerebellum {

/// What nobody can measure. What is left empty is taken from the file's metadata, where it says so.
struct CardSettings {
    std::string license, license_link, quantized_by;
    std::vector<std::string> base_models, tags, languages;
    std::vector<std::string> commands;  // that make the file again
};

/// What a card says of the file itself: size, hash, types and what they are used for, where it comes from, what its
/// metadata says of licence and languages. `companions` are other files beside it whose hashes belong in the card;
/// those that are missing are left out. The recipe beside the file, if there is one, says what source it was made from.
/// Throws Error where recipe or results beside the file are about another one.
nlohmann::json card_facts(const std::filesystem::path& file, const CardSettings& settings,
                          const std::vector<std::filesystem::path>& companions, Progress& progress);

/// What a card says of the measurements: how many, classes, the most and the least sensitive tensors, and how much more
/// changes do together than one by one.
nlohmann::json card_findings(const Journal& journal);

}  // namespace cerebellum
