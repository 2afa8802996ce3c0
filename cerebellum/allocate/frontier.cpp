#include "cerebellum/allocate/frontier.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace cerebellum {

namespace {

/// A group's choices in rising bytes and falling damage, on their lower convex hull.
std::vector<TypeChoice> hull_of(std::vector<TypeChoice> choices) {
    std::ranges::stable_sort(choices, [](const TypeChoice& a, const TypeChoice& b) {
        return a.bytes != b.bytes ? a.bytes < b.bytes : a.cost < b.cost;
    });
    const auto slope = [](const TypeChoice& a, const TypeChoice& b) {
        return (b.cost - a.cost) / static_cast<double>(b.bytes - a.bytes);
    };
    std::vector<TypeChoice> hull;
    for (const auto& choice : choices) {
        if (!hull.empty() && choice.cost >= hull.back().cost) continue;
        while (hull.size() >= 2 && slope(hull[hull.size() - 2], hull.back()) >= slope(hull.back(), choice))
            hull.pop_back();
        hull.push_back(choice);
    }
    return hull;
}

struct HullStep {
    double slope;
    std::size_t group;
    std::uint64_t bytes;
    double kld;
    Encoding type;
};

}  // namespace

Frontier solve_frontier(const AllocationProblem& problem) {
    if (problem.max_types != 0)
        throw Error(
            "a frontier cannot have a limited number of types: its files differ in which they use; drop "
            "--max-types");
    const auto groups = groups_of(problem);
    Frontier frontier;
    auto& smallest = frontier.smallest;
    smallest.file_bytes = problem.fixed_bytes;
    smallest.exact = true;
    std::vector<HullStep> steps;
    for (std::size_t g = 0; g < groups.size(); ++g) {
        const auto hull = hull_of(groups[g].choices);
        smallest.file_bytes += hull.front().bytes;
        smallest.cost += hull.front().cost;
        for (const auto index : groups[g].tensors) smallest.types[problem.tensors[index].name] = hull.front().type;
        for (std::size_t i = 1; i < hull.size(); ++i) {
            const auto bytes = hull[i].bytes - hull[i - 1].bytes;
            const double kld = hull[i].cost - hull[i - 1].cost;
            steps.push_back({kld / static_cast<double>(bytes), g, bytes, kld, hull[i].type});
        }
    }
    smallest.lower_bound = smallest.cost;
    // A group's own steps are in the order of their slopes already, and equal ones keep it.
    std::ranges::stable_sort(steps, {}, &HullStep::slope);
    std::uint64_t bytes = smallest.file_bytes;
    auto kld = static_cast<long double>(smallest.cost);
    for (const auto& step : steps) {
        bytes += step.bytes;
        kld += static_cast<long double>(step.kld);
        FrontierStep next{{}, step.type, bytes, static_cast<double>(kld)};
        for (const auto index : groups[step.group].tensors) next.tensors.push_back(problem.tensors[index].name);
        frontier.steps.push_back(std::move(next));
    }
    return frontier;
}

TypeMap types_at(const Frontier& frontier, std::uint64_t file_bytes) {
    TypeMap types = frontier.smallest.types;
    for (const auto& step : frontier.steps) {
        if (step.file_bytes > file_bytes) break;
        for (const auto& tensor : step.tensors) types[tensor] = step.type;
    }
    return types;
}

std::vector<FrontierPoint> points_of(const Frontier& frontier) {
    std::vector<FrontierPoint> points = {{frontier.smallest.file_bytes, frontier.smallest.cost}};
    for (const auto& step : frontier.steps) points.push_back({step.file_bytes, step.cost});
    return points;
}

SizeBracket bracket_under(const Frontier& frontier, double max_cost) {
    const auto points = points_of(frontier);
    const auto enough = std::ranges::find_if(points, [&](const auto& point) { return point.cost <= max_cost; });
    if (enough == points.begin()) return {enough->file_bytes, enough->file_bytes};
    const auto& before = *(enough - 1);
    if (enough == points.end()) return {before.file_bytes, before.file_bytes};
    const double part = (before.cost - max_cost) / (before.cost - enough->cost);
    const auto span = static_cast<double>(enough->file_bytes - before.file_bytes);
    // Rounding must not lift the bound above what it bounds.
    const auto inside = static_cast<std::uint64_t>(std::max(0.0, std::floor(part * span * (1.0 - 1e-9)) - 1.0));
    return {before.file_bytes + inside, enough->file_bytes};
}

std::vector<std::size_t> knee_points(std::span<const FrontierPoint> points, std::size_t most) {
    constexpr double orders = 1e-4;      // of magnitude of damage that are looked at
    constexpr double stands_out = 0.02;  // of the distance's scale, where sides of the chord's square are 1
    std::size_t n = 0;
    while (n < points.size() && points[n].cost > 0.0 && points[n].cost >= orders * points.front().cost) ++n;
    if (n < 3) return {};
    const auto x0 = static_cast<double>(points[0].file_bytes);
    const double width = static_cast<double>(points[n - 1].file_bytes) - x0;
    const double top = std::log(points[0].cost), height = top - std::log(points[n - 1].cost);
    if (width <= 0.0 || height <= 0.0) return {};
    std::vector<double> below(n);  // the chord
    for (std::size_t i = 0; i < n; ++i)
        below[i] = (top - std::log(points[i].cost)) / height - (static_cast<double>(points[i].file_bytes) - x0) / width;

    // Local maxima from which the distance falls by more than `stands_out` on both sides before it rises above them.
    std::vector<std::size_t> knees;
    std::size_t candidate = 0;
    double lowest = below[0];
    bool rising = true;
    for (std::size_t i = 0; i < n; ++i) {
        if (rising) {
            if (below[i] > below[candidate]) candidate = i;
            if (below[i] < below[candidate] - stands_out) {
                if (below[candidate] > lowest + stands_out) knees.push_back(candidate);
                rising = false;
                lowest = below[i];
            }
        } else {
            lowest = std::min(lowest, below[i]);
            if (below[i] > lowest + stands_out) {
                rising = true;
                candidate = i;
            }
        }
    }
    std::ranges::stable_sort(knees, std::greater<>{}, [&](std::size_t i) { return below[i]; });
    if (knees.size() > most) knees.resize(most);
    std::ranges::sort(knees);
    return knees;
}

}  // namespace cerebellum
