#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "cerebellum/allocate/recipe_problem.h"
#include "cerebellum/core/progress.h"
#include "cerebellum/core/stats.h"
#include "cerebellum/evaluate/figures.h"

namespace cerebellum {

/// Chance, at each recipe that a search comes to, of leaving it for one that is no better.
inline constexpr double search_level = 0.05;

/// A change of some tensors together that was put to the test.
struct SearchStep {
    TypeMap from, to;              // of the tensors that change
    std::uint64_t file_bytes = 0;  // afterwards
    double expected_gain = 0.0;    // KLD, by what was seen on the exploring windows
    Estimate gain;                 // KLD before minus after, paired by window, on the confirming windows
    double p = 1.0;                // one-sided, of no gain
    double level = 0.0;            // that p has to reach
    bool accepted = false;
};

struct SearchResult {
    TypeMap types;                  // of every tensor of the problem
    std::vector<SearchStep> steps;  // in the order in which they were tested
    std::size_t explored = 0;       // changes of a single tensor or group that were measured
    bool exhausted = false;         // nothing is left to try; else the time was up

    std::size_t accepted() const;
};

/// Scores of whole recipes, in the order given, on windows that the allocation has not seen: `explore` suggests
/// changes, `confirm` tests them. Empty where the time is up.
enum class SearchWindows { explore, confirm };
using RecipeScorer = std::function<std::optional<std::vector<std::vector<WindowScore>>>(
    std::span<const TypeMap> recipes, SearchWindows windows)>;

/// Searches around a recipe, never leaving its budget and the problem's constraints.
///
/// Single tensors (coupled ones together) are changed to another type each, all others staying as the recipe has them,
/// and measured on the exploring windows, those first whose change would gain most if the predictions were off by as
/// much as they usually are. What is measured is drawn to the prediction by how much the predictions have proved to be
/// off so far (empirical Bayes). By these figures, the best combination of the changes that keeps the budget is put to
/// the test on the confirming windows, and where it fails, the best single promotion with what has to make room for it.
/// A change is accepted where a paired one-sided t test over windows is significant; the k-th test at a recipe has the
/// level 5 % / (k·(k+1)), so that all tests there together have 5 %, however many they get. Then the search goes on
/// from the changed recipe.
///
/// Takes no decision by the clock: a longer search begins with the steps of a shorter one.
SearchResult search_recipe(const StartingRecipe& start, const RecipeScorer& scorer, Progress& progress);

}  // namespace cerebellum
