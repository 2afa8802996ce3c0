#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "cerebellum/build/recipe.h"
#include "cerebellum/journal/journal.h"

namespace cerebellum {

// A record (results, recipe, figures) says by a digest which file it is about. Who reads one compares. `facts` are
// card_facts of the file, `origin` names the record in errors.

/// Results of quantize, figures of modelfile. Throws Error where they are about another file, or do not say which.
void check_record(const nlohmann::json& record, const std::string& origin, const nlohmann::json& facts);
/// The recipe of a file is the one whose digest the file carries, or its results. `results` may be null.
void check_recipe_record(const Recipe& recipe, const std::string& origin, const nlohmann::json& facts,
                         const nlohmann::json& results);
/// An evaluation may be about several files; what it says of this one is to be about it.
void check_evaluation(const nlohmann::json& evaluation, const std::string& origin, const nlohmann::json& facts);
/// Throws Error unless the file was made from the model that was measured, or is that model.
void check_measured_model(const Journal& journal, const nlohmann::json& facts);
/// Throws Error where a result is about files that were made from another model than `fingerprint`.
void check_source(const nlohmann::json& result, const std::string& origin, const std::string& fingerprint);

}  // namespace cerebellum
