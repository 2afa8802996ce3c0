#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "cerebellum/allocate/recipe_problem.h"

namespace cerebellum {

/// One step up the frontier: these tensors, coupled where there are several, take the type.
struct FrontierStep {
    std::vector<std::string> tensors;
    Encoding type;
    std::uint64_t file_bytes = 0;  // of the file after the step
    double cost = 0.0;             // predicted after the step
};

/// Predicted cost over size: the smallest file, and the steps that lead from it to the largest worth having, in
/// rising size and falling cost. After every step the file is the best one of at most its size.
struct Frontier {
    Allocation smallest;
    std::vector<FrontierStep> steps;
};

/// The lower convex hull of everything that can be had, found by one sort: each group's own hull, steepest steps first
/// (these are the solutions of the linear relaxation that happen to be whole, hence optimal for their size). Between
/// two points `allocate` may find better files than the lower point. Throws Error for a
/// problem with max_types, whose best files lie on no such path.
Frontier solve_frontier(const AllocationProblem& problem);

/// Types of every tensor of the problem at the largest point of at most `file_bytes`.
TypeMap types_at(const Frontier& frontier, std::uint64_t file_bytes);

/// Sizes around the smallest file whose cost is at most `max_cost`: no file below the one is good enough, and the
/// point of the frontier at the other is. `enough` is the largest point where none is good enough.
struct SizeBracket {
    std::uint64_t not_less_than = 0;
    std::uint64_t enough = 0;
};
SizeBracket bracket_under(const Frontier& frontier, double max_cost);

struct FrontierPoint {
    std::uint64_t file_bytes = 0;
    double cost = 0.0;
};

/// All points, the smallest file first.
std::vector<FrontierPoint> points_of(const Frontier& frontier);

/// Points beyond which a byte buys markedly less than before it, as indices, at most `most` of them, in rising size:
/// where log cost over size lies furthest below its chord, and the other local extremes of that distance that stand
/// out (V. Satopaa et al. 2011, "Finding a 'Kneedle' in a haystack"). Only costs within four orders of magnitude of
/// the first point's is looked at.
std::vector<std::size_t> knee_points(std::span<const FrontierPoint> points, std::size_t most = 3);

}  // namespace cerebellum
