#pragma once

#include <cstddef>
#include <vector>

#include "cerebellum/allocate/recipe_problem.h"

namespace cerebellum {

/// Another choice for one tensor: indices into AllocationProblem::tensors and its choices.
struct Move {
    std::size_t tensor = 0;
    std::size_t choice = 0;
    double penalty =
        0.0;  // cost it adds at the recipe's own price of a byte; the smaller, the nearer to being worth it
};

/// The price of a byte at a recipe, cost per byte: between what the best promotion gains for one and what the
/// cheapest demotion costs, along the lower convex hulls. `types` names every tensor of the problem.
double byte_price(const AllocationProblem& problem, const TypeMap& types);

/// For each tensor the next larger and the next smaller choice on the lower convex hull of cost over bytes, by rising
/// penalty. `types` names every tensor of the problem.
std::vector<Move> marginal_moves(const AllocationProblem& problem, const TypeMap& types);

}  // namespace cerebellum
