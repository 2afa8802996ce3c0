#pragma once

#include <filesystem>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cerebellum/build/recipe.h"
#include "cerebellum/evaluate/figures.h"
#include "cerebellum/pipeline/contenders.h"
#include "cerebellum/pipeline/job_plan.h"
#include "cerebellum/pipeline/own_recipes.h"
#include "cerebellum/pipeline/rounds.h"
#include "cerebellum/pipeline/scaling_search.h"
#include "cerebellum/pipeline/session.h"
#include "cerebellum/pipeline/timed_search.h"
#include "cerebellum/pipeline/whole_prediction.h"

namespace cerebellum {

class OutputLock;

/// Which file was chosen, and how clearly.
struct Choice {
    std::string next_best;  // the best of the others that might have been delivered; empty where there was none
    Estimate difference;    // on the selection text, damage of the next best minus that of the chosen, paired by window
};

/// What scaling channels has come to.
struct ScalingOutcome {
    ScalingSearch search;
    Estimate gain;  // KLD on the test text of our best without it minus with it, paired by window
};

struct QuantizeResult {
    std::filesystem::path output;
    std::uint64_t budget_bytes = 0;  // given, or what the goal comes to
    std::uint64_t n_weights = 0;
    Recipe recipe;                              // of the delivered file
    std::string sha256;                         // of the delivered file
    std::optional<WholePrediction> prediction;  // of the delivered file; empty where a type was not measured
    std::vector<std::string> remarks;           // on how the goal was reached
    std::string delivered;                      // name of the contender that was delivered
    Contender::Kind delivered_kind = Contender::Kind::ours;
    Choice choice;
    bool compare_all = false;           // every stock mix was measured
    std::vector<Contender> contenders;  // the source first, then by size
    std::string text;                   // description
    std::string reference;              // what damage is counted from
    std::vector<Round> rounds;          // that were made around the recipe
    Estimate rounds_gain;               // KLD on the test text without them minus with them, paired by window
    std::optional<TimedSearch> search;  // around the recipe, after the rounds
    std::optional<ScalingOutcome> scaling;
    Effort effort = Effort::normal;
    std::vector<StageTime> stages;  // of this run, up to when this was written
    double null_floor_kld = 0.0;    // what no change at all appears to cost, nats per token
};

struct QuantizeOptions : OwnRecipesOptions {
    std::filesystem::path output;
    bool overwrite = false;
    std::filesystem::path imatrix_out;  // empty: beside the output
    bool scaling = false;               // search for scales, and measure the scaled model as well
    bool compare_all = false;           // measure every stock mix, not only those that may turn out to be the best
    /// Told, at the begin of a stage, how many seconds it and all behind it are expected to take.
    std::function<void(double stage_s, double later_s)> expect;
    OutputLock* lock = nullptr;  // on the output; told when the files get their names
};

/// What of the job takes time, for plan_ahead(). Where the size follows from another goal it is a guess.
JobRequest planned_job(const GgufFile& source, const QuantizeOptions& options);

/// The main job: measure, allocate, build, verify. Writes the output and, beside it, the recipe, the llama-quantize
/// type file, the importance matrix and the results. Of our recipe as it was allocated, after rounds and after a
/// search, the same of the model with scaled channels, and of all stock mixes of at most the size, that is delivered
/// which does least damage on the selection text, and the result says which; but never one that a constraint forbids.
/// Stock mixes that cannot be the best by what is predicted of them are not measured (compete()).
///
/// Rough figures (Effort::quick) are compared with the stock mixes next to the size only.
QuantizeResult quantize_model(Session& session, const QuantizeOptions& options, Progress& progress);

/// Paths of what lies beside an output: `output` with another ending.
std::filesystem::path recipe_path(const std::filesystem::path& output);
std::filesystem::path type_file_path(const std::filesystem::path& output);
std::filesystem::path imatrix_path(const std::filesystem::path& output);
std::filesystem::path results_path(const std::filesystem::path& output);

nlohmann::json to_json(const QuantizeResult& result);

}  // namespace cerebellum
