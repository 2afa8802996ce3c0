#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "cerebellum/allocate/knapsack.h"
#include "cerebellum/core/recipe.h"

namespace cerebellum {

/// One way to store a tensor: its type, the bytes it takes in the file (padding included), and what it is predicted to
/// cost: KLD in nats per token, or what another objective counts.
struct TypeChoice {
    Encoding type;
    std::uint64_t bytes = 0;
    double cost = 0.0;
};

struct TensorChoices {
    std::string name;
    std::vector<TypeChoice> choices;
};

/// Which types the tensors of a file can be given.
struct AllocationProblem {
    std::uint64_t fixed_bytes = 0;  // everything in the file that no choice changes
    std::vector<TensorChoices> tensors;
    /// Tensors, as indices, that take one type together. No tensor is in two of these.
    std::vector<std::vector<std::size_t>> coupled = {};
    /// At most so many distinct types among `tensors`; 0: any number.
    std::size_t max_types = 0;
};

/// Tensors that are decided together, and the sums of bytes and cost that each common type comes to.
struct AllocationGroup {
    std::vector<std::size_t> tensors;
    std::vector<TypeChoice> choices;
};

/// Every tensor in exactly one group: the coupled ones of the problem, and each of the others alone. Throws Error
/// naming a coupled tensor where there is no type that all of its group can have.
std::vector<AllocationGroup> groups_of(const AllocationProblem& problem);

struct Allocation {
    TypeMap types;
    std::uint64_t file_bytes = 0;
    double cost = 0.0;         // sum over tensors
    double lower_bound = 0.0;  // no allocation within the budget is predicted to cost less
    bool exact = false;
};

/// A recipe to be bettered by other choices of the problem, within a budget.
struct StartingRecipe {
    AllocationProblem problem;
    std::uint64_t budget_bytes = 0;  // of the file
    TypeMap types;                   // of every tensor of the problem
};

/// The least cost in a file of at most `budget_bytes`. Throws Error, with the smallest possible size in it, where the
/// budget cannot be met, and where no choice of `max_types` types serves every tensor.
Allocation allocate(const AllocationProblem& problem, std::uint64_t budget_bytes);

/// The smallest file whose predicted cost is at most `max_cost`. `exact` says that no smaller one is (with max_types:
/// none smaller by more than a ten-thousandth). Throws Error, with the least cost possible in it, where no allocation
/// stays under it.
Allocation allocate_under(const AllocationProblem& problem, double max_cost);

/// Bytes of the smallest file there is, whatever its cost.
std::uint64_t smallest_file_bytes(const AllocationProblem& problem);

}  // namespace cerebellum
