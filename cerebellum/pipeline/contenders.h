#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cerebellum/core/stats.h"
#include "cerebellum/evaluate/figures.h"
#include "cerebellum/pipeline/aim.h"
#include "cerebellum/pipeline/mix_scores.h"
#include "cerebellum/pipeline/session.h"

namespace cerebellum {

/// The damage of a whole mix, predicted from figures of single tensors.
struct MixPrediction {
    Estimate kld;           // nats per token
    bool at_least = false;  // there are types without a figure, which count as no damage
};

/// One file, built or not, in the comparison.
struct Contender {
    enum class Kind { source, ours, preset, pure };
    Kind kind = Kind::preset;
    std::string name;         // "Q4_K_M", "pure Q4_0, embedding Q8_0", …
    TypeMap types;            // of every tensor
    std::uint64_t bytes = 0;  // of the file as it is delivered (ours) or as llama-quantize writes it (all others)
    bool fits = false;        // at most the budget
    std::vector<WindowScore> selection;      // replayed
    std::vector<WindowScore> test;           // replayed, or as libllama runs the built file
    bool built = false;                      // test figures are of a file loaded by libllama
    std::optional<MixPrediction> predicted;  // of stock mixes, where something is known

    bool replayed() const { return !selection.empty(); }
    bool predicted_only() const { return test.empty(); }
};

/// "source", "ours", "preset" or "pure".
std::string_view kind_name(Contender::Kind kind);

/// Where a contender's figures come from: "libllama", "replay" or "predicted".
std::string_view measured_by(const Contender& contender);

/// Measures the types of several contenders on the selection text, the test text, or both in one pass.
void replay_scores(Session& session, std::span<Contender* const> contenders, std::span<const TextPart> parts,
                   const Aim& aim, Progress& progress);

/// Damage on the selection text, as the objective has it.
double selection_cost(const Contender& contender, Objective objective);

/// The stock mixes to compare with, by size: every preset of at most the budget and the next larger one. Where none
/// fits, all distinct uniform files `--pure T --token-embedding-type E` that do, and that preset.
std::vector<Contender> find_contenders(Session& session, std::uint64_t budget_bytes);

}  // namespace cerebellum
