#include "cerebellum/allocate/few_types.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cmath>
#include <limits>
#include <optional>

namespace cerebellum {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr std::size_t most_labels = 64;

/// A set of labels, one bit each.
using Labels = std::uint64_t;

constexpr Labels only(std::size_t label) {
    return Labels{1} << label;
}

struct Item {
    double bytes;
    double cost;
    std::size_t label;
};

struct Sum {
    double bytes = 0.0;
    double cost = 0.0;
};

/// The Lagrangian dual of a set of labels: a lower bound on what it can cost, and where it is attained.
struct Dual {
    double value = infinity;  // infinite where the set cannot be afforded
    double lambda = 0.0;
};

class LabelSearch {
  public:
    LabelSearch(const KnapsackProblem& problem, const std::vector<std::vector<std::size_t>>& labels,
                std::size_t max_labels, const FewLabelsLimits& limits)
        : problem_(problem), wanted_(max_labels), limits_(limits) {
        budget_ = static_cast<double>(problem.budget_bytes);
        for (std::size_t g = 0; g < problem.groups.size(); ++g) {
            auto& items = groups_.emplace_back();
            for (std::size_t o = 0; o < problem.groups[g].size(); ++o) {
                const auto& option = problem.groups[g][o];
                assert(labels[g][o] < most_labels);
                items.push_back({static_cast<double>(option.bytes), option.cost, labels[g][o]});
                all_ |= only(labels[g][o]);
            }
        }
    }

    /// Empty where no set of labels was found that can be afforded.
    std::optional<KnapsackSolution> run() {
        descend();
        improve();
        branch(all_, 0, -infinity);
        if (!best_) return std::nullopt;
        best_->exact = best_->exact && complete();
        best_->lower_bound = std::min({best_->lower_bound, open_bound_, best_->cost});
        return best_;
    }
    bool complete() const { return open_bound_ == infinity; }

  private:
    template <typename Better>
    std::optional<Sum> best_of_each(Labels allowed, Better&& better) const {
        Sum sum;
        for (const auto& items : groups_) {
            const Item* least = nullptr;
            for (const Item& item : items)
                if ((allowed & only(item.label)) != 0 && (least == nullptr || better(item, *least))) least = &item;
            if (least == nullptr) return std::nullopt;
            sum.bytes += least->bytes;
            sum.cost += least->cost;
        }
        return sum;
    }

    Dual dual(Labels allowed) const {
        auto small = best_of_each(allowed, [](const Item& a, const Item& b) {
            return a.bytes != b.bytes ? a.bytes < b.bytes : a.cost < b.cost;
        });
        if (!small || small->bytes > budget_) return {};
        auto large = best_of_each(allowed, [](const Item& a, const Item& b) {
            return a.cost != b.cost ? a.cost < b.cost : a.bytes < b.bytes;
        });
        if (large->bytes <= budget_) return {large->cost, 0.0};
        // The dual is the lower envelope of one line per assignment, in λ. Two of them, one rising and one falling,
        // meet above the envelope's top or at it; the assignment that is least where they meet takes the place of one.
        const auto line = [&](const Sum& sum, double lambda) { return sum.cost + lambda * (sum.bytes - budget_); };
        constexpr int most_rounds = 100;  // a handful is usual; any multiplier gives a bound
        for (int round = 0;; ++round) {
            const double lambda = (small->cost - large->cost) / (large->bytes - small->bytes);
            const auto least = *best_of_each(allowed, [&](const Item& a, const Item& b) {
                return a.cost + lambda * a.bytes < b.cost + lambda * b.bytes;
            });
            const double value = line(least, lambda), meeting = line(*large, lambda);
            if (round == most_rounds || value >= meeting - 1e-13 * (std::fabs(meeting) + lambda * budget_))
                return {std::min(value, meeting), lambda};
            (least.bytes > budget_ ? large : small) = least;
        }
    }

    /// What taking one label away costs at the least, for each; infinite for the only label of some group.
    std::array<double, most_labels> losses(Labels allowed, double lambda) const {
        std::array<double, most_labels> result{};
        for (const auto& items : groups_) {
            double first = infinity, second = infinity;
            std::size_t label = 0;
            for (const Item& item : items) {
                if ((allowed & only(item.label)) == 0) continue;
                const double price = item.cost + lambda * item.bytes;
                if (price < first) {
                    if (item.label != label) second = first;
                    first = price;
                    label = item.label;
                } else if (item.label != label) {
                    second = std::min(second, price);
                }
            }
            result[label] += second - first;
        }
        return result;
    }

    double tolerance() const { return best_ ? 1e-12 * std::fabs(best_->cost) : 0.0; }
    bool hopeless(double bound) const { return bound == infinity || (best_ && bound >= best_->cost - tolerance()); }

    static std::vector<std::size_t> listed(Labels labels) {
        std::vector<std::size_t> list;
        for (; labels != 0; labels &= labels - 1) list.push_back(static_cast<std::size_t>(std::countr_zero(labels)));
        return list;
    }
    static std::size_t count(Labels labels) { return static_cast<std::size_t>(std::popcount(labels)); }

    /// Solves for a set of the right size, if its bound leaves hope.
    void leaf(Labels allowed) {
        if (hopeless(dual(allowed).value)) return;
        KnapsackProblem reduced;
        reduced.budget_bytes = problem_.budget_bytes;
        std::vector<std::vector<std::size_t>> original;
        for (std::size_t g = 0; g < groups_.size(); ++g) {
            auto& options = reduced.groups.emplace_back();
            auto& indices = original.emplace_back();
            for (std::size_t o = 0; o < groups_[g].size(); ++o) {
                if ((allowed & only(groups_[g][o].label)) == 0) continue;
                options.push_back(problem_.groups[g][o]);
                indices.push_back(o);
            }
        }
        auto solution = solve_knapsack(reduced);
        if (!solution.exact) open_bound_ = std::min(open_bound_, solution.lower_bound);
        if (best_ && solution.cost >= best_->cost) return;
        for (std::size_t g = 0; g < groups_.size(); ++g) solution.choice[g] = original[g][solution.choice[g]];
        best_ = std::move(solution);
        best_labels_ = allowed;
    }

    /// A first solution: gives up the label that costs least until few enough are left.
    void descend() {
        Labels allowed = all_;
        while (count(allowed) > wanted_) {
            const auto loss = losses(allowed, dual(allowed).lambda);
            auto order = listed(allowed);
            std::ranges::stable_sort(order, {}, [&](std::size_t label) { return loss[label]; });
            const auto next = std::ranges::find_if(
                order, [&](std::size_t label) { return dual(allowed & ~only(label)).value < infinity; });
            if (next == order.end()) return;
            allowed &= ~only(*next);
        }
        leaf(allowed);
    }

    /// Exchanges one label for another as long as the bound falls.
    void improve() {
        if (!best_) return;
        Labels current = best_labels_;
        double value = dual(current).value;
        for (bool better = true; better;) {
            better = false;
            Labels next = current;
            for (const auto out : listed(current))
                for (const auto in : listed(all_ & ~current)) {
                    const Labels candidate = (current & ~only(out)) | only(in);
                    if (const double bound = dual(candidate).value; bound < value - tolerance()) {
                        value = bound;
                        next = candidate;
                        better = true;
                    }
                }
            current = next;
        }
        if (current != best_labels_) leaf(current);
    }

    /// Looks at all sets between `included` and `allowed`.
    void branch(Labels allowed, Labels included, double known_bound) {
        if (++nodes_ > limits_.nodes) {
            open_bound_ = std::min(open_bound_, known_bound);
            return;
        }
        if (count(allowed) <= wanted_) return leaf(allowed);
        const Dual top = dual(allowed);
        if (hopeless(top.value)) return;
        const auto loss = losses(allowed, top.lambda);
        auto open = listed(allowed & ~included);
        std::ranges::stable_sort(open, {}, [&](std::size_t label) { return loss[label]; });
        const std::size_t removals = count(allowed) - wanted_;
        if (open.size() < removals) return;
        double bound = top.value;
        for (std::size_t i = 0; i < removals; ++i) bound += loss[open[i]];
        if (hopeless(bound)) return;
        const double others = bound - loss[open[removals - 1]];  // all removals but the dearest
        std::ranges::reverse(open);
        // Labels whose removal alone is too much stay; of the others, the dearest are decided first.
        while (!open.empty() && open.size() > removals && hopeless(others + loss[open.front()])) {
            included |= only(open.front());
            open.erase(open.begin());
        }
        if (count(included) > wanted_) return;
        const std::size_t places = wanted_ - count(included);
        Labels kept = included;
        for (std::size_t i = 0; i < places; ++i) kept |= only(open[i]);
        leaf(kept);
        for (std::size_t i = places; i-- > 0;) {
            kept &= ~only(open[i]);
            branch(allowed & ~only(open[i]), kept, std::max(known_bound, bound));
        }
    }

    const KnapsackProblem& problem_;
    std::size_t wanted_;
    const FewLabelsLimits& limits_;
    std::vector<std::vector<Item>> groups_;
    double budget_ = 0.0;
    Labels all_ = 0;
    std::size_t nodes_ = 0;
    double open_bound_ = infinity;  // least bound of what was not looked at
    std::optional<KnapsackSolution> best_;
    Labels best_labels_ = 0;
};

}  // namespace

KnapsackSolution solve_few_labels(const KnapsackProblem& problem, const std::vector<std::vector<std::size_t>>& labels,
                                  std::size_t max_labels, const FewLabelsLimits& limits) {
    auto free_choice = solve_knapsack(problem);  // refuses what is impossible with any number of labels
    Labels used = 0;
    for (std::size_t g = 0; g < labels.size(); ++g) used |= only(labels[g][free_choice.choice[g]]);
    if (static_cast<std::size_t>(std::popcount(used)) <= max_labels) return free_choice;

    LabelSearch search(problem, labels, max_labels, limits);
    if (auto solution = search.run()) {
        solution->lower_bound = std::min(std::max(solution->lower_bound, free_choice.lower_bound), solution->cost);
        return *solution;
    }
    KnapsackProblem smallest = problem;
    smallest.budget_bytes = 0;
    for (auto& options : smallest.groups) {
        std::uint64_t largest = 0;
        for (auto& option : options) {
            option.cost = static_cast<double>(option.bytes);
            largest = std::max(largest, option.bytes);
        }
        smallest.budget_bytes += largest;
    }
    LabelSearch least(smallest, labels, max_labels, limits);
    const auto found = least.run();
    if (!found)
        throw Error(fmt::format("no {} {} that every tensor can have were found; allow more", max_labels,
                                max_labels == 1 ? "type" : "types"));
    throw BudgetTooSmall(problem.budget_bytes, found->bytes);
}

}  // namespace cerebellum
