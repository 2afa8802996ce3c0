#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cerebellum/evaluate/figures.h"
#include "cerebellum/pipeline/aim.h"
#include "cerebellum/pipeline/mix_scores.h"
#include "cerebellum/pipeline/session.h"

namespace cerebellum {

/// One file, built or not, in the comparison.
struct Contender {
    enum class Kind { source, ours, preset, pure };
    Kind kind = Kind::preset;
    std::string name;         // "Q4_K_M", "pure Q4_0, embedding Q8_0", …
    TypeMap types;            // of every tensor
    std::uint64_t bytes = 0;  // of the file as it is delivered (ours) or as llama-quantize writes it (all others)
    bool fits = false;        // at most the budget
    std::vector<WindowScore> selection;  // replayed
    std::vector<WindowScore> test;       // replayed, or as libllama runs the built file
    bool built = false;                  // test figures are of a file loaded by libllama
};

/// "source", "ours", "preset" or "pure".
std::string_view kind_name(Contender::Kind kind);

/// Measures the types of several contenders on the selection or the test text.
void replay_scores(Session& session, std::span<Contender*> contenders, TextPart part, const Aim& aim,
                   Progress& progress);

/// Damage on the selection text, as the objective has it.
double selection_cost(const Contender& contender, Objective objective);

/// The stock mixes to compare with, by size: every preset of at most the budget and the next larger one. Where none
/// fits, the best of all uniform files `--pure T --token-embedding-type E` that fit, found by a race on the selection
/// text: all on a few of its windows, the best third on twice as many, and so on.
std::vector<Contender> find_contenders(Session& session, std::uint64_t budget_bytes, const Aim& aim,
                                       Progress& progress);

}  // namespace cerebellum
