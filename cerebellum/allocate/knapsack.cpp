#include "cerebellum/allocate/knapsack.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

// How it works. Let λ be the multiplier that maximises the Lagrangian bound L, and the base solution the best options
// at λ on the side that fits. Every assignment costs L + Σ penalties + λ·slack, where an option's penalty
// (cost + λ·bytes, minus the least of its group) is never negative. To find everything cheaper than L + δ it is
// therefore enough to look at options of penalty < δ: the core, a handful of options for small δ (Pisinger 1995, "A
// minimal algorithm for the multiple-choice knapsack problem"). We begin with a small δ and double it until something
// is found, which is then the optimum, or until δ reaches the gap of a greedy solution, which is then the optimum. Each
// search lists the Pareto-optimal partial assignments of two halves of the core (Horowitz & Sahni 1974), pruned by the
// linear relaxation of the groups still open (Dyer, Riha & Walker 1995), and joins the halves in one pass.
//
// report/web/src/knapsack.js is the same in JavaScript, operation by operation, so that a report gives the same
// answers: keep the two in step. Hence doubles only, and no fused multiply-add (CMakeLists.txt).

namespace cerebellum {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

/// A sum that loses next to nothing to rounding, the same on every machine (Ogita, Rump & Oishi 2005, "Accurate sum and
/// dot product").
class PreciseSum {
  public:
    void add(double value) {
        const double sum = high_ + value;
        const double rounded = sum - high_;
        low_ += (high_ - (sum - rounded)) + (value - rounded);
        high_ = sum;
    }
    double value() const { return high_ + low_; }

  private:
    double high_ = 0.0, low_ = 0.0;
};

/// An option that no other of its group dominates. Bytes are counted from the group's smallest option in units of the
/// problem's common divisor.
struct Item {
    std::int64_t bytes;
    double cost;
    std::size_t index;
};

/// Undominated options in rising bytes and strictly falling cost; equals keep the first.
std::vector<Item> undominated(const std::vector<Option>& options) {
    std::vector<std::size_t> order(options.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
        if (options[a].bytes != options[b].bytes) return options[a].bytes < options[b].bytes;
        if (options[a].cost != options[b].cost) return options[a].cost < options[b].cost;
        return a < b;
    });
    std::vector<Item> items;
    const std::uint64_t smallest = options[order.front()].bytes;
    for (const std::size_t i : order)
        if (items.empty() || options[i].cost < items.back().cost)
            items.push_back({static_cast<std::int64_t>(options[i].bytes - smallest), options[i].cost, i});
    return items;
}

/// A step of a group from one vertex of its lower convex hull to the next larger one.
struct HullStep {
    double slope;  ///< cost per byte, negative
    std::int64_t bytes;
    double cost;
    std::size_t group;
    std::size_t item;  ///< the vertex it leads to
};

/// Appends the steps of the lower convex hull of items in rising bytes and falling cost.
void append_hull(const std::vector<Item>& items, std::size_t group, std::vector<HullStep>& steps) {
    const auto slope = [&](std::size_t a, std::size_t b) {
        return (items[b].cost - items[a].cost) / static_cast<double>(items[b].bytes - items[a].bytes);
    };
    std::vector<std::size_t> hull;
    for (std::size_t i = 0; i < items.size(); ++i) {
        while (hull.size() >= 2 && slope(hull[hull.size() - 2], hull.back()) >= slope(hull.back(), i)) hull.pop_back();
        hull.push_back(i);
    }
    for (std::size_t i = 1; i < hull.size(); ++i) {
        const Item &from = items[hull[i - 1]], &to = items[hull[i]];
        steps.push_back({slope(hull[i - 1], hull[i]), to.bytes - from.bytes, to.cost - from.cost, group, hull[i]});
    }
}

/// Steepest first; the rest only makes the order a function of the input.
void sort_steps(std::vector<HullStep>& steps) {
    std::sort(steps.begin(), steps.end(), [](const HullStep& a, const HullStep& b) {
        if (a.slope != b.slope) return a.slope < b.slope;
        if (a.group != b.group) return a.group < b.group;
        return a.item < b.item;
    });
}

/// A group of the core: options whose penalty is below δ, as differences from the base solution.
struct CoreGroup {
    std::size_t group;
    std::vector<Item> items;
    double effect;  ///< smallest penalty of leaving the base option
};

/// The linear relaxation of a set of groups: the least cost at most x bytes can be had for, a convex function.
class Relaxation {
  public:
    Relaxation(const std::vector<CoreGroup>& core, std::vector<HullStep> sorted_steps)
        : core_(core), steps_(std::move(sorted_steps)), open_(core.size(), true) {
        rebuild();
    }

    /// Takes one group, a position in the core, out of the set.
    void close(std::size_t position) {
        open_[position] = false;
        std::erase_if(steps_, [&](const HullStep& step) { return step.group == position; });
        rebuild();
    }

    std::int64_t smallest_bytes() const { return bytes_.front(); }

    /// Value at x, for calls with falling x after rewind().
    void rewind() { cursor_ = bytes_.size() - 1; }
    double at(std::int64_t x) {
        while (cursor_ > 0 && bytes_[cursor_] > x) --cursor_;
        if (cursor_ + 1 == bytes_.size()) return cost_[cursor_];
        return cost_[cursor_] + steps_[cursor_].slope * static_cast<double>(x - bytes_[cursor_]);
    }

  private:
    void rebuild() {
        bytes_.assign(1, 0);
        cost_.assign(1, 0.0);
        for (std::size_t i = 0; i < core_.size(); ++i) {
            if (!open_[i]) continue;
            bytes_[0] += core_[i].items.front().bytes;
            cost_[0] += core_[i].items.front().cost;
        }
        for (const HullStep& step : steps_) {
            bytes_.push_back(bytes_.back() + step.bytes);
            cost_.push_back(cost_.back() + step.cost);
        }
    }

    const std::vector<CoreGroup>& core_;
    std::vector<HullStep> steps_;
    std::vector<bool> open_;
    std::vector<std::int64_t> bytes_;
    std::vector<double> cost_;
    std::size_t cursor_ = 0;
};

/// A partial assignment, as differences from the base solution.
struct Label {
    std::int64_t bytes;
    double cost;
};

/// Where a label came from, kept for every stage.
struct Origin {
    std::uint32_t parent;
    std::uint32_t item;
};

/// The labels of one half of the core: the last list and how it came about.
struct Half {
    std::vector<std::size_t> positions;  ///< core groups in the order of processing
    std::vector<Label> labels;
    std::vector<std::vector<Origin>> origins;
};

class Solver {
  public:
    Solver(const KnapsackProblem& problem, const KnapsackLimits& limits) : problem_(problem), limits_(limits) {}

    KnapsackSolution solve() {
        prepare();
        if (find_base()) {
            best_ = base_;
            return finish(true);
        }
        find_greedy();
        return finish(search());
    }

  private:
    void prepare() {
        std::uint64_t smallest = 0;
        for (std::size_t g = 0; g < problem_.groups.size(); ++g) {
            const auto& options = problem_.groups[g];
            if (options.empty())
                throw Error(fmt::format("allocation: group {} has no option; give it at least one type", g));
            for (std::size_t o = 0; o < options.size(); ++o)
                if (!std::isfinite(options[o].cost))
                    throw Error(
                        fmt::format("allocation: option {} of group {} has cost {}, no finite number; measure it again",
                                    o, g, options[o].cost));
            const auto least = std::min_element(options.begin(), options.end(),
                                                [](const Option& a, const Option& b) { return a.bytes < b.bytes; });
            if (__builtin_add_overflow(smallest, least->bytes, &smallest))
                smallest = std::numeric_limits<std::uint64_t>::max();
        }
        if (smallest > problem_.budget_bytes) throw BudgetTooSmall(problem_.budget_bytes, smallest);

        // What exceeds the budget with everything else at its smallest cannot be part of any assignment.
        const std::uint64_t spare = problem_.budget_bytes - smallest;
        std::uint64_t divisor = 0, most = 0;
        groups_.reserve(problem_.groups.size());
        for (const auto& options : problem_.groups) {
            groups_.push_back(undominated(options));
            auto& items = groups_.back();
            while (static_cast<std::uint64_t>(items.back().bytes) > spare) items.pop_back();
            for (const Item& item : items) divisor = std::gcd(divisor, static_cast<std::uint64_t>(item.bytes));
            if (__builtin_add_overflow(most, static_cast<std::uint64_t>(items.back().bytes), &most) || most >> 61)
                throw Error("allocation: the options' bytes add up to more than 2^61; check their sizes");
        }
        if (divisor == 0) divisor = 1;
        for (auto& items : groups_)
            for (Item& item : items) item.bytes /= static_cast<std::int64_t>(divisor);
        divisor_ = divisor;
        budget_ = static_cast<std::int64_t>(std::min(spare, most) / divisor);
    }

    /// The best multiplier, the solution of the relaxation rounded down, and the bound. True where that is optimal.
    bool find_base() {
        std::vector<HullStep> steps;
        for (std::size_t g = 0; g < groups_.size(); ++g) append_hull(groups_[g], g, steps);
        sort_steps(steps);
        base_.assign(groups_.size(), 0);
        slack_ = budget_;
        lambda_ = 0.0;
        for (const HullStep& step : steps) {
            if (step.bytes > slack_) {
                lambda_ = -step.slope;
                break;
            }
            slack_ -= step.bytes;
            base_[step.group] = step.item;
        }
        // Σ min (cost + λ·bytes) − λ·budget, written around the base solution so that no large products cancel.
        PreciseSum bound;
        double scale = 0.0;
        for (std::size_t g = 0; g < groups_.size(); ++g) {
            double least = infinity;
            const Item& base = groups_[g][base_[g]];
            for (const Item& item : groups_[g])
                least = std::min(least, item.cost + lambda_ * static_cast<double>(item.bytes - base.bytes));
            bound.add(least);
            scale += std::abs(base.cost);
        }
        const double waste = lambda_ * static_cast<double>(slack_);
        bound.add(-waste);
        lagrangian_ = bound.value();
        // Costs nearer than this are equal: beyond it only the order of summation would decide.
        tolerance_ = 1e-15 * (scale + waste);
        return waste <= tolerance_;
    }

    std::int64_t bytes_of(const std::vector<std::size_t>& items) const {
        std::int64_t total = 0;
        for (std::size_t g = 0; g < items.size(); ++g) total += groups_[g][items[g]].bytes;
        return total;
    }

    /// Cost above the bound.
    double excess_of(const std::vector<std::size_t>& items) const {
        PreciseSum total;
        for (std::size_t g = 0; g < items.size(); ++g) total.add(groups_[g][items[g]].cost);
        total.add(-lagrangian_);
        return total.value();
    }

    /// Spends the base solution's slack, the largest saving first.
    void find_greedy() {
        best_ = base_;
        std::int64_t slack = slack_;
        for (std::size_t round = 0; round < 64; ++round) {
            double best_change = 0.0;
            std::size_t best_group = 0, best_item = 0;
            for (std::size_t g = 0; g < groups_.size(); ++g) {
                const Item& now = groups_[g][best_[g]];
                for (std::size_t i = best_[g] + 1; i < groups_[g].size(); ++i) {
                    if (groups_[g][i].bytes - now.bytes > slack) break;
                    if (const double change = groups_[g][i].cost - now.cost; change < best_change) {
                        best_change = change;
                        best_group = g;
                        best_item = i;
                    }
                }
            }
            if (best_change == 0.0) break;
            slack -= groups_[best_group][best_item].bytes - groups_[best_group][best_[best_group]].bytes;
            best_[best_group] = best_item;
        }
    }

    double penalty(std::size_t g, const Item& item) const {
        const Item& base = groups_[g][base_[g]];
        return std::max(0.0, item.cost - base.cost + lambda_ * static_cast<double>(item.bytes - base.bytes));
    }

    /// Improves best_ until it is proved optimal (true) or the limits are reached.
    bool search() {
        double excess = excess_of(best_);
        std::vector<double> penalties;
        for (std::size_t g = 0; g < groups_.size(); ++g)
            for (std::size_t i = 0; i < groups_[g].size(); ++i)
                if (i != base_[g])
                    if (const double p = penalty(g, groups_[g][i]); p > 0.0 && p < excess) penalties.push_back(p);
        // A core of about a dozen options is searched in no time, and often enough.
        double delta = excess;
        if (constexpr std::size_t first_core = 12; penalties.size() > first_core) {
            std::nth_element(penalties.begin(), penalties.begin() + first_core, penalties.end());
            delta = penalties[first_core];
        }
        // Lists that grow long are first thinned, which is quick and often finds an optimum that the bound then proves;
        // only then are they searched in full.
        bool proved = false;
        for (const std::size_t labels : {limits_.labels / 32, limits_.labels}) {
            while (!proved) {
                delta = std::min(delta, excess);
                const Outcome outcome = search_below(delta, labels, false);
                if (outcome == Outcome::too_many) break;
                proved = outcome == Outcome::found || delta >= excess;
                if (outcome == Outcome::nothing) excluded_ = delta;
                delta *= 2.0;
            }
            if (proved) return true;
            const double too_wide = delta;
            for (;; delta *= 4.0) {
                delta = std::min(delta, excess);
                if (search_below(delta, labels, true) == Outcome::found || delta >= excess) break;
            }
            excess = excess_of(best_);
            if (excess <= excluded_ + tolerance_) return true;
            delta = std::min(too_wide, excess);
        }
        return delta < excess ? false : search_below(delta, limits_.labels, false) != Outcome::too_many;
    }

    enum class Outcome { found, nothing, too_many };

    /// Looks for the cheapest assignment of excess <= delta and makes it best_. With `coarse`, lists that grow too long
    /// are thinned instead of given up.
    Outcome search_below(double delta, std::size_t max_labels, bool coarse) {
        core_.clear();
        const double limit = delta * (1.0 + 1e-12) + tolerance_;
        for (std::size_t g = 0; g < groups_.size(); ++g) {
            CoreGroup group{g, {}, infinity};
            const Item& base = groups_[g][base_[g]];
            for (std::size_t i = 0; i < groups_[g].size(); ++i) {
                const Item& item = groups_[g][i];
                const double p = penalty(g, item);
                if (i != base_[g] && p > limit) continue;
                if (i != base_[g]) group.effect = std::min(group.effect, p);
                group.items.push_back({item.bytes - base.bytes, item.cost - base.cost, i});
            }
            if (group.items.size() > 1) core_.push_back(std::move(group));
        }
        // Expensive groups first: few combinations of them stay below δ, so the lists stay short until the end.
        std::stable_sort(core_.begin(), core_.end(),
                         [](const CoreGroup& a, const CoreGroup& b) { return a.effect > b.effect; });
        std::vector<HullStep> steps;
        for (std::size_t i = 0; i < core_.size(); ++i) append_hull(core_[i].items, i, steps);
        sort_steps(steps);

        Half halves[2];
        for (std::size_t i = 0; i < core_.size(); ++i) halves[i % 2].positions.push_back(i);
        // In terms of label costs: the base solution is `slack_` short of the budget.
        const double cost_limit = limit - lambda_ * static_cast<double>(slack_);
        const std::size_t per_list = coarse ? std::max<std::size_t>(64, max_labels / (core_.size() + 1)) : 0;
        std::size_t labels = 0;
        for (Half& half : halves) {
            Relaxation open(core_, steps);
            half.labels = {{0, 0.0}};
            for (const std::size_t position : half.positions) {
                open.close(position);
                half.origins.push_back(extend(half.labels, core_[position], open, cost_limit, per_list,
                                              coarse ? std::numeric_limits<std::size_t>::max() : max_labels - labels));
                labels += half.labels.size();
                if (!coarse && labels >= max_labels) return Outcome::too_many;
                if (half.labels.empty()) return Outcome::nothing;
            }
        }
        return join(halves, cost_limit) ? Outcome::found : Outcome::nothing;
    }

    /// Replaces the labels by all their extensions by one group that are undominated and may still end within the
    /// limit. Stops early once there are more than max_labels. per_list > 0: thins longer lists to about that length.
    std::vector<Origin> extend(std::vector<Label>& labels, const CoreGroup& group, Relaxation& open, double cost_limit,
                               std::size_t per_list, std::size_t max_labels) {
        std::vector<Label> next;
        std::vector<Origin> origins;
        next.reserve(labels.size() * 2);
        origins.reserve(labels.size() * 2);
        const auto& items = group.items;
        std::vector<std::size_t> heads(items.size(), 0);
        double cheapest = infinity;
        open.rewind();
        while (true) {
            // Merge of one shifted copy of the list per item, in rising bytes.
            std::size_t from = items.size();
            Label label{0, 0.0};
            for (std::size_t i = 0; i < items.size(); ++i) {
                if (heads[i] == labels.size()) continue;
                const Label& head = labels[heads[i]];
                const Label candidate{head.bytes + items[i].bytes, head.cost + items[i].cost};
                if (from < items.size() &&
                    (candidate.bytes > label.bytes || (candidate.bytes == label.bytes && candidate.cost >= label.cost)))
                    continue;
                label = candidate;
                from = i;
            }
            if (from == items.size()) break;
            const std::size_t parent = heads[from]++;
            if (label.cost >= cheapest) continue;
            const std::int64_t left = slack_ - label.bytes;
            if (left < open.smallest_bytes()) break;
            cheapest = label.cost;
            if (label.cost + open.at(left) > cost_limit) continue;
            next.push_back(label);
            origins.push_back({static_cast<std::uint32_t>(parent), static_cast<std::uint32_t>(from)});
            if (next.size() > max_labels) break;
        }
        if (per_list > 0 && next.size() > per_list) thin(next, origins, per_list);
        labels = std::move(next);
        return origins;
    }

    /// Keeps the label of least penalty in each of `count` equal ranges of bytes. What is kept is a true assignment, so
    /// bytes stay exact and only optimality is lost.
    void thin(std::vector<Label>& labels, std::vector<Origin>& origins, std::size_t count) {
        const std::int64_t first = labels.front().bytes;
        const std::int64_t width = (labels.back().bytes - first) / static_cast<std::int64_t>(count) + 1;
        if (width == 1) return;
        resolution_ = std::max(resolution_, static_cast<std::uint64_t>(width) * divisor_);
        const auto price = [&](const Label& label) { return label.cost + lambda_ * static_cast<double>(label.bytes); };
        std::size_t kept = 0;
        for (std::size_t i = 0; i < labels.size(); ++i) {
            const bool same = kept > 0 && (labels[kept - 1].bytes - first) / width == (labels[i].bytes - first) / width;
            if (same && price(labels[i]) >= price(labels[kept - 1])) continue;
            const std::size_t slot = same ? kept - 1 : kept++;
            labels[slot] = labels[i];
            origins[slot] = origins[i];
        }
        labels.resize(kept);
        origins.resize(kept);
    }

    /// The cheapest pair of labels that fits; false where none is within the limit.
    bool join(const Half (&halves)[2], double cost_limit) {
        const auto &first = halves[0].labels, &second = halves[1].labels;
        std::optional<std::pair<std::size_t, std::size_t>> pair;
        Label best{0, cost_limit};
        std::size_t j = second.size();
        for (std::size_t i = 0; i < first.size(); ++i) {
            while (j > 0 && first[i].bytes + second[j - 1].bytes > slack_) --j;
            if (j == 0) break;
            // Costs fall with bytes, so the largest that fits is the cheapest.
            const Label sum{first[i].bytes + second[j - 1].bytes, first[i].cost + second[j - 1].cost};
            if (sum.cost > best.cost || (pair && sum.cost == best.cost && sum.bytes >= best.bytes)) continue;
            best = sum;
            pair = {i, j - 1};
        }
        if (!pair) return false;
        std::vector<std::size_t> items = base_;
        for (const auto& [half, last] : {std::pair{&halves[0], pair->first}, std::pair{&halves[1], pair->second}}) {
            std::size_t label = last;
            for (std::size_t stage = half->positions.size(); stage-- > 0;) {
                const CoreGroup& group = core_[half->positions[stage]];
                const Origin origin = half->origins[stage][label];
                items[group.group] = group.items[origin.item].index;
                label = origin.parent;
            }
        }
        const double change = excess_of(items) - excess_of(best_);
        if (change < 0.0 || (change == 0.0 && bytes_of(items) < bytes_of(best_))) best_ = std::move(items);
        return true;
    }

    KnapsackSolution finish(bool exact) const {
        KnapsackSolution solution;
        solution.exact = exact;
        solution.resolution_bytes = exact ? 1 : resolution_;
        solution.choice.reserve(groups_.size());
        PreciseSum cost;
        for (std::size_t g = 0; g < groups_.size(); ++g) {
            const std::size_t index = groups_[g][best_[g]].index;
            solution.choice.push_back(index);
            solution.bytes += problem_.groups[g][index].bytes;
            cost.add(problem_.groups[g][index].cost);
        }
        solution.cost = cost.value();
        assert(solution.bytes <= problem_.budget_bytes);
        // Rounding may lift the bound above the optimum by an ulp or two; a bound is never above what it bounds.
        solution.lower_bound = std::min(solution.cost, exact ? lagrangian_ : lagrangian_ + excluded_);
        return solution;
    }

    const KnapsackProblem& problem_;
    const KnapsackLimits& limits_;
    std::vector<std::vector<Item>> groups_;
    std::uint64_t divisor_ = 1;
    std::int64_t budget_ = 0;  ///< beyond the smallest assignment, in units of divisor_
    std::int64_t slack_ = 0;   ///< of the base solution
    double lambda_ = 0.0;
    double lagrangian_ = 0.0;
    double tolerance_ = 0.0;
    double excluded_ = 0.0;                 ///< no assignment is cheaper than lagrangian_ + excluded_
    std::vector<std::size_t> base_, best_;  ///< items per group
    std::vector<CoreGroup> core_;
    std::uint64_t resolution_ = 1;
};

}  // namespace

BudgetTooSmall::BudgetTooSmall(std::uint64_t budget_bytes, std::uint64_t smallest_bytes)
    : Error(
          fmt::format("allocation: the budget of {} bytes cannot be met, the smallest choice of types takes {} bytes; "
                      "raise the budget or allow smaller types",
                      budget_bytes, smallest_bytes)),
      smallest_bytes_(smallest_bytes) {}

KnapsackSolution solve_knapsack(const KnapsackProblem& problem, const KnapsackLimits& limits) {
    return Solver(problem, limits).solve();
}

}  // namespace cerebellum
