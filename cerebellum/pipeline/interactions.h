#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "cerebellum/core/size.h"
#include "cerebellum/pipeline/session.h"
#include "cerebellum/predict/calibration.h"

namespace cerebellum {

struct InteractionOptions {
    bool pairs = true;            // of tensors of the same block, all of them, in some blocks
    bool layers = true;           // all tensors of a block
    bool ladders = true;          // the k most demotable tensors of the whole model, k doubling
    bool recipes = true;          // whole recipes, which calibrate predictions
    int pair_layers = 3;          // blocks whose pairs are measured, spread evenly over the model
    double bits = 3.0;            // every tensor is changed to its measured type nearest to this many bits per weight
    std::vector<SizeGoal> sizes;  // of the recipes; empty: spread over what is possible up to 6.5 bits per weight
};

/// Several changes together against the sum of each alone, on the windows that single damages were measured on.
struct Interaction {
    std::string kind;  // "pair", "layer", "ladder"
    std::string name;
    TypeMap types;
    Estimate whole;      // KLD, nats per token
    double parts = 0.0;  // sum of the KLDs of each alone
    Estimate ratio;      // whole / parts; errors are clustered by window and paired
};

/// A whole recipe against the sum of the predicted damages of its tensors.
struct RecipeInteraction {
    double bits_per_weight = 0.0;
    std::uint64_t file_bytes = 0;
    double sum = 0.0;
    Estimate whole;
    double ratio = 0.0;
};

struct InteractionResult {
    std::vector<Interaction> interactions;
    std::vector<RecipeInteraction> recipes;
};

/// Measures what the journal does not hold yet: first the single damages, then everything asked for.
InteractionResult measure_interactions(Session& session, const InteractionOptions& options, Progress& progress);

/// The interactions that a journal holds with all their parts, in the order in which they were measured. Their kinds
/// and names follow from their tensors: two or more of one block are a pair or a layer, all others a ladder.
std::vector<Interaction> stored_interactions(const Journal& journal);

nlohmann::json to_json(const InteractionResult& result);

}  // namespace cerebellum
