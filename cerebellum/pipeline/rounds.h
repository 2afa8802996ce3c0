#pragma once

#include <vector>

#include "cerebellum/allocate/recipe_problem.h"
#include "cerebellum/core/stats.h"
#include "cerebellum/pipeline/aim.h"
#include "cerebellum/pipeline/session.h"

namespace cerebellum {

/// One round around a recipe.
struct Round {
    std::size_t tried = 0;    // promotions and demotions that were measured
    std::size_t changed = 0;  // tensors whose type the new allocation changes
    Estimate gain;            // KLD of the recipe before minus that of the one after, paired by window
    bool taken = false;       // the gain is significant: more than twice its error
};

struct Refinement {
    TypeMap types;
    std::vector<Round> rounds;
};

/// Moves the point that damage is measured at to the recipe itself: for each tensor the next larger and the next
/// smaller type worth having, all others as the recipe has them, are measured as whole mixes against the source, the
/// most marginal ones first; the budget is then allocated again between what was measured. Ends when nothing
/// changes, a change is not significantly better on the text that is measured on, or after `n_rounds`.
Refinement refine(Session& session, const StartingRecipe& start, int n_rounds, const Aim& aim, Progress& progress);

}  // namespace cerebellum
