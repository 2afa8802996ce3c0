#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cerebellum/allocate/recipe_problem.h"
#include "cerebellum/build/build_gguf.h"
#include "cerebellum/build/recipe.h"
#include "cerebellum/pipeline/aim.h"
#include "cerebellum/pipeline/contenders.h"
#include "cerebellum/pipeline/goal.h"
#include "cerebellum/pipeline/rounds.h"
#include "cerebellum/pipeline/session.h"
#include "cerebellum/pipeline/timed_search.h"
#include "cerebellum/pipeline/whole_prediction.h"

namespace cerebellum {

struct OwnRecipesOptions {
    AllocationRequest request;
    Aim aim;
    bool sequential = false;      // measure no more windows than the recipe hangs on
    int rounds = 0;               // of measuring again around the recipe; see refine()
    double search_seconds = 0.0;  // for search_for(); 0: no search
};

/// What our own measurements of a model come to.
struct OwnRecipes {
    Recipe recipe;                     // as it was allocated
    std::uint64_t budget_bytes = 0;    // given, or what the goal comes to
    std::vector<std::string> remarks;  // on how the goal was reached
    AllocationGoal goal;               // as it was corrected after verifying
    /// As it was allocated, then what rounds and search have made of it, where that is another mix.
    std::vector<Contender> versions;
    std::size_t n_before_search = 1;    // of the versions
    std::vector<Round> rounds;          // that were made around the recipe
    std::optional<TimedSearch> search;  // around the recipe, after the rounds
    AllocationProblem problem;          // of the aim, under the request's constraints
    AllocationProblem kld_problem;      // without them, in KLD
    Calibration calibration;            // of kld_problem's sums

    const Contender& final() const { return versions.back(); }
    /// Whether one of the versions is this very contender.
    bool holds(const Contender* contender) const;
    /// The recipe of one of the versions, or of a stock mix in their place.
    Recipe recipe_of(const GgufFile& source, const Contender& contender,
                     const std::optional<ImatrixInfo>& imatrix) const;
    std::optional<WholePrediction> prediction_of(const TypeMap& types) const;
};

/// Throws UsageError where options contradict each other.
void check_own_recipes_options(const OwnRecipesOptions& options);

/// Measures what the session's journal lacks, allocates, and goes through rounds and search. The recipes are for
/// `source`: the session's own, or the model that the session's is a scaled copy of. `name` is what the last version is
/// called; earlier ones are called `name` without what made the later ones of them.
///
/// A goal of a largest KLD is verified on the selection text: a file that misses it there is allocated anew, with as
/// much less damage predicted as it missed by.
OwnRecipes make_own_recipes(Session& session, const GgufFile& source, const OwnRecipesOptions& options,
                            const std::string& name, Progress& progress);

}  // namespace cerebellum
