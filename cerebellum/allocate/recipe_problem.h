#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cerebellum/allocate/knapsack.h"
#include "cerebellum/core/recipe.h"

namespace cerebellum {

/// One way to store a tensor: its type, the bytes it takes in the file (padding included), the damage it is predicted
/// to do in nats per token.
struct TypeChoice {
    Encoding type;
    std::uint64_t bytes = 0;
    double kld = 0.0;
};

struct TensorChoices {
    std::string name;
    std::vector<TypeChoice> choices;
};

/// Which types to give to which tensors of a file of at most `budget_bytes`.
struct AllocationProblem {
    std::uint64_t fixed_bytes = 0;  // everything in the file that no choice changes
    std::vector<TensorChoices> tensors;
    std::uint64_t budget_bytes = 0;
};

struct Allocation {
    TypeMap types;
    std::uint64_t file_bytes = 0;
    double predicted_kld = 0.0;  // sum over tensors
    double lower_bound = 0.0;    // no allocation within the budget is predicted to do less damage
    bool exact = false;
};

/// Throws Error, with the smallest possible size in it, where the budget cannot be met.
Allocation allocate(const AllocationProblem& problem);

}  // namespace cerebellum
