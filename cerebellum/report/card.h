#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cerebellum/report/stored_result.h"

namespace cerebellum {

/// What a model card is made of: stored results, and nothing else.
struct CardSources {
    StoredResult facts;                     // of the file, "cerebellum-facts" (pipeline/card_facts.h)
    std::optional<StoredResult> results;    // of 'quantize'
    std::optional<StoredResult> findings;   // of the journal, "cerebellum-findings"
    std::optional<StoredResult> serving;    // of 'modelfile --json'
    std::vector<StoredResult> evaluations;  // of 'eval' and 'memory'; others are refused
};

/// What an evaluation is. Throws Error for anything else.
enum class EvaluationKind { benchmark, text, speed, serving, memory };
EvaluationKind kind_of(const StoredResult& evaluation);

/// README.md: YAML front matter as Hugging Face specifies it, then Markdown. Sections without stored results are left
/// out.
std::string write_card(const CardSources& sources);

/// The front matter alone, without its "---" lines.
std::string front_matter(const CardSources& sources);

}  // namespace cerebellum
