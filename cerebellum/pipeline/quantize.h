#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cerebellum/build/recipe.h"
#include "cerebellum/evaluate/figures.h"
#include "cerebellum/pipeline/aim.h"
#include "cerebellum/pipeline/goal.h"
#include "cerebellum/pipeline/rounds.h"
#include "cerebellum/pipeline/session.h"
#include "cerebellum/pipeline/whole_prediction.h"

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

struct QuantizeResult {
    std::filesystem::path output;
    std::uint64_t budget_bytes = 0;  // given, or what the goal comes to
    std::uint64_t n_weights = 0;
    Recipe recipe;                              // of the delivered file
    std::optional<WholePrediction> prediction;  // of the delivered file; empty where a type was not measured
    std::vector<std::string> remarks;           // on how the goal was reached
    std::string delivered;                      // name of the contender that was delivered
    std::vector<Contender> contenders;          // the source first, then by size
    std::string text;                           // description
    std::string reference;                      // what damage is counted from
    std::vector<Round> rounds;                  // that were made around the recipe
    Estimate rounds_gain;                       // KLD on the test text without them minus with them, paired by window
    double null_floor_kld = 0.0;                // what no change at all appears to cost, nats per token
};

struct QuantizeOptions {
    AllocationRequest request;
    std::filesystem::path output;
    bool overwrite = false;
    std::filesystem::path imatrix_out;  // empty: beside the output
    bool sequential = false;            // measure no more windows than the recipe hangs on
    Aim aim;
    int rounds = 0;  // of measuring again around the recipe; see refine()
};

/// The main job: measure, allocate, build, verify. Writes the output and, beside it, the recipe, the llama-quantize
/// type file, the importance matrix and the results. If a stock mix of at most the size does less damage on the
/// selection text, that mix is delivered instead, and the result says so; but never one that a constraint forbids.
///
/// A goal of a largest KLD is verified on the selection text: a file that misses it there is allocated anew, with as
/// much less damage predicted as it missed by.
QuantizeResult quantize_model(Session& session, const QuantizeOptions& options, Progress& progress);

/// Paths of what lies beside an output: `output` with another ending.
std::filesystem::path recipe_path(const std::filesystem::path& output);
std::filesystem::path type_file_path(const std::filesystem::path& output);
std::filesystem::path imatrix_path(const std::filesystem::path& output);
std::filesystem::path results_path(const std::filesystem::path& output);

nlohmann::json to_json(const QuantizeResult& result);

}  // namespace cerebellum
