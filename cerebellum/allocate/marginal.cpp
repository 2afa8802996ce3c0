#include "cerebellum/allocate/marginal.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

namespace cerebellum {

namespace {

double bytes_of(const TypeChoice& choice) {
    return static_cast<double>(choice.bytes);
}

/// Indices of the choices on the lower convex hull that cost less the larger they are, by rising size.
std::vector<std::size_t> hull(const std::vector<TypeChoice>& choices) {
    std::vector<std::size_t> order(choices.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::ranges::sort(order, [&](std::size_t a, std::size_t b) {
        return std::pair(choices[a].bytes, choices[a].cost) < std::pair(choices[b].bytes, choices[b].cost);
    });
    const auto slope = [&](std::size_t a, std::size_t b) {
        return (choices[b].cost - choices[a].cost) / (bytes_of(choices[b]) - bytes_of(choices[a]));
    };
    std::vector<std::size_t> points;
    for (const auto i : order) {
        if (!points.empty() && choices[i].cost >= choices[points.back()].cost) continue;
        while (points.size() >= 2 && slope(points[points.size() - 2], points.back()) >= slope(points.back(), i))
            points.pop_back();
        points.push_back(i);
    }
    return points;
}

/// Cost per byte between two choices, as a positive price.
double price(const TypeChoice& smaller, const TypeChoice& larger) {
    return (smaller.cost - larger.cost) / (bytes_of(larger) - bytes_of(smaller));
}

/// A recipe's choices, and the next ones on the hull.
struct Neighbourhood {
    struct Entry {
        const TypeChoice* now = nullptr;
        std::optional<std::size_t> up, down;
    };
    std::vector<Entry> tensors;
    double byte_price = 0.0;

    Neighbourhood(const AllocationProblem& problem, const TypeMap& types) {
        double best_promotion = 0.0, best_demotion = 0.0;
        for (const auto& tensor : problem.tensors) {
            auto& entry = tensors.emplace_back();
            entry.now = &*std::ranges::find(tensor.choices, types.at(tensor.name), &TypeChoice::type);
            for (const auto i : hull(tensor.choices)) {
                if (tensor.choices[i].bytes > entry.now->bytes && !entry.up) entry.up = i;
                if (tensor.choices[i].bytes < entry.now->bytes) entry.down = i;
            }
            if (entry.up) best_promotion = std::max(best_promotion, price(*entry.now, tensor.choices[*entry.up]));
            if (!entry.down) continue;
            const double demotion = price(tensor.choices[*entry.down], *entry.now);
            if (demotion > 0.0 && (best_demotion == 0.0 || demotion < best_demotion)) best_demotion = demotion;
        }
        byte_price = best_promotion > 0.0 && best_demotion > 0.0 ? std::sqrt(best_promotion * best_demotion)
                                                                 : std::max(best_promotion, best_demotion);
    }
};

}  // namespace

double byte_price(const AllocationProblem& problem, const TypeMap& types) {
    return Neighbourhood(problem, types).byte_price;
}

std::vector<Move> marginal_moves(const AllocationProblem& problem, const TypeMap& types) {
    const Neighbourhood all(problem, types);
    std::vector<Move> moves;
    for (std::size_t t = 0; t < all.tensors.size(); ++t)
        for (const auto& to : {all.tensors[t].up, all.tensors[t].down}) {
            if (!to) continue;
            const auto& choice = problem.tensors[t].choices[*to];
            const auto& now = *all.tensors[t].now;
            moves.push_back({t, *to, choice.cost - now.cost + all.byte_price * (bytes_of(choice) - bytes_of(now))});
        }
    std::ranges::stable_sort(moves, {}, &Move::penalty);
    return moves;
}

}  // namespace cerebellum
