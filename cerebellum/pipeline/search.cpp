#include "cerebellum/pipeline/search.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <compare>
#include <functional>
#include <limits>
#include <map>
#include <set>
#include <string>

#include "cerebellum/allocate/marginal.h"
#include "cerebellum/core/error.h"

namespace cerebellum {

namespace {

/// Single changes that are measured between two proposals.
constexpr std::size_t batch_size = 12;
/// Relative error of a predicted damage, by which changes are ordered (docs/fast-tier.md).
constexpr double prediction_error = 0.2;
/// Of the greatest expected gain of a single change; below it none is worth a replay.
constexpr double least_expected = 0.01;
/// Of the recipe's predicted damage; what promises less is not put to the test.
constexpr double least_gain = 5e-4;

using Scores = std::vector<WindowScore>;

/// Another choice of a group.
struct Change {
    std::size_t group = 0;
    std::size_t choice = 0;
    auto operator<=>(const Change&) const = default;  // NOLINT(modernize-use-nullptr): clang-tidy 14 reads a 0 in it
};

struct Candidate {
    TypeMap groups;  // by the groups' names
    double expected_gain = 0.0;
};

class RecipeSearch {
  public:
    RecipeSearch(const StartingRecipe& start, const RecipeScorer& scorer, Progress& progress)
        : problem_(start.problem), budget_bytes_(start.budget_bytes), scorer_(scorer), progress_(progress) {
        // Every group of coupled tensors as one tensor.
        groups_.fixed_bytes = problem_.fixed_bytes;
        groups_.max_types = problem_.max_types;
        for (const auto& group : groups_of(problem_)) {
            const auto& name = problem_.tensors[group.tensors.front()].name;
            groups_.tensors.push_back({name, group.choices});
            now_[name] = start.types.at(name);
            auto& members = members_[name];
            for (const auto tensor : group.tensors) members.push_back(problem_.tensors[tensor].name);
        }
    }

    SearchResult run() {
        tested_.insert(now_);
        for (bool time_left = true; time_left;) {
            const auto batch = next_changes();
            time_left = batch.empty() || measure(batch);
            if (!time_left) break;
            bool accepted = false;
            for (const auto& propose : {&RecipeSearch::best_combination, &RecipeSearch::best_swap}) {
                const auto candidate = (this->*propose)();
                if (!candidate || !tested_.insert(candidate->groups).second) continue;
                const auto outcome = test(*candidate);
                time_left = outcome.has_value();
                accepted = outcome.value_or(false);
                if (accepted || !time_left) break;
            }
            if (time_left && batch.empty() && !accepted) {
                result_.exhausted = true;
                break;
            }
        }
        result_.types = tensors_of(now_);
        return std::move(result_);
    }

  private:
    struct Effect {
        double predicted = 0.0;
        double scale = 0.0;  // the larger of the two damages
        Estimate measured;   // KLD with the change minus that without
    };

    TypeMap tensors_of(const TypeMap& groups) const {
        TypeMap types;
        for (const auto& [name, type] : groups)
            for (const auto& member : members_.at(name)) types[member] = type;
        return types;
    }
    const TypeChoice& choice_of(const Change& change) const {
        return groups_.tensors[change.group].choices[change.choice];
    }
    const TypeChoice& now_of(std::size_t group) const {
        const auto& tensor = groups_.tensors[group];
        return *std::ranges::find(tensor.choices, now_.at(tensor.name), &TypeChoice::type);
    }
    double predicted_damage() const {
        double sum = 0.0;
        for (std::size_t g = 0; g < groups_.tensors.size(); ++g) sum += now_of(g).cost;
        return sum;
    }

    /// The most promising changes that were not measured yet.
    std::vector<Change> next_changes() const {
        const double price = byte_price(groups_, now_);
        std::vector<std::pair<double, Change>> promising;
        for (std::size_t g = 0; g < groups_.tensors.size(); ++g) {
            const auto& now = now_of(g);
            const auto& choices = groups_.tensors[g].choices;
            for (std::size_t c = 0; c < choices.size(); ++c) {
                if (choices[c].type == now.type) continue;
                const double penalty = choices[c].cost - now.cost +
                                       price * (static_cast<double>(choices[c].bytes) - static_cast<double>(now.bytes));
                promising.emplace_back(expected_loss({penalty, prediction_error * std::hypot(choices[c].cost, now.cost),
                                                      std::numeric_limits<double>::infinity()}),
                                       Change{g, c});
            }
        }
        std::ranges::stable_sort(promising, std::greater<>{}, [](const auto& entry) { return entry.first; });
        std::vector<Change> changes;
        for (const auto& [gain, change] : promising) {
            if (gain < least_expected * promising.front().first || changes.size() == batch_size) break;
            if (!effects_.contains(change)) changes.push_back(change);
        }
        return changes;
    }

    bool measure(const std::vector<Change>& changes) {
        std::vector<TypeMap> recipes = {tensors_of(now_)};
        for (const auto& change : changes) {
            auto groups = now_;
            groups[groups_.tensors[change.group].name] = choice_of(change).type;
            recipes.push_back(tensors_of(groups));
        }
        const auto scores = scorer_(recipes, SearchWindows::explore);
        if (!scores) return false;
        for (std::size_t i = 0; i < changes.size(); ++i) {
            const double before = now_of(changes[i].group).cost, after = choice_of(changes[i]).cost;
            effects_[changes[i]] = {after - before, std::max(before, after),
                                    kld_difference((*scores)[i + 1], scores->front())};
        }
        result_.explored += changes.size();
        return true;
    }

    /// Variance of the predictions' errors, relative to the damages, beyond what the windows' noise explains
    /// (DerSimonian and Laird, 1986, with the mean known to be zero).
    double prediction_variance() const {
        double statistic = 0.0, weights = 0.0, n = 0.0;
        for (const auto& [change, effect] : effects_) {
            const double noise = effect.measured.error / effect.scale;
            if (!(effect.scale > 0.0) || !std::isfinite(noise) || noise == 0.0) continue;
            const double residual = (effect.measured.mean - effect.predicted) / effect.scale;
            statistic += residual * residual / (noise * noise);
            weights += 1.0 / (noise * noise);
            n += 1.0;
        }
        return weights > 0.0 ? std::max(0.0, (statistic - n) / weights) : 0.0;
    }

    /// The measured changes with what they are expected to add to the damage; the present types at nothing.
    AllocationProblem around() const {
        const double variance = prediction_variance();
        auto local = groups_;
        for (std::size_t g = 0; g < local.tensors.size(); ++g) {
            const auto& now = now_of(g);
            local.tensors[g].choices = {{now.type, now.bytes, 0.0}};
        }
        for (const auto& [change, effect] : effects_) {
            const double own = variance * effect.scale * effect.scale;
            const double noise = effect.measured.error * effect.measured.error;
            const double weight = std::isfinite(noise) && own + noise > 0.0 ? own / (own + noise) : 0.0;
            const auto& choice = choice_of(change);
            local.tensors[change.group].choices.push_back(
                {choice.type, choice.bytes, effect.predicted + weight * (effect.measured.mean - effect.predicted)});
        }
        return local;
    }

    std::optional<Candidate> solved(const AllocationProblem& local) const {
        if (smallest_file_bytes(local) > budget_bytes_) return std::nullopt;
        Allocation solution;
        try {
            solution = allocate(local, budget_bytes_);
        } catch (const Error&) {  // not with so few types
            return std::nullopt;
        }
        if (solution.types == now_ || !(-solution.cost > least_gain * predicted_damage())) return std::nullopt;
        return Candidate{std::move(solution.types), -solution.cost};
    }

    std::optional<Candidate> best_combination() { return solved(around()); }

    /// One group gets another type; where it is a larger one, others make room.
    std::optional<Candidate> best_swap() {
        const auto local = around();
        auto shrinking = local, unchanged = local;
        for (auto& tensor : shrinking.tensors) {
            const auto now = tensor.choices.front().bytes;
            std::erase_if(tensor.choices, [&](const TypeChoice& choice) { return choice.bytes > now; });
        }
        for (auto& tensor : unchanged.tensors) tensor.choices.resize(1);
        std::optional<Candidate> best;
        for (std::size_t g = 0; g < local.tensors.size(); ++g)
            for (const auto& choice : local.tensors[g].choices) {
                if (choice.type == now_of(g).type) continue;
                auto swap = choice.bytes > now_of(g).bytes ? shrinking : unchanged;
                swap.tensors[g].choices = {choice};
                auto candidate = solved(swap);
                if (candidate && !tested_.contains(candidate->groups) &&
                    (!best || candidate->expected_gain > best->expected_gain))
                    best = std::move(candidate);
            }
        return best;
    }

    /// Whether it is accepted; empty where the time is up.
    std::optional<bool> test(const Candidate& candidate) {
        const TypeMap recipes[] = {tensors_of(now_), tensors_of(candidate.groups)};
        const auto scores = scorer_(recipes, SearchWindows::confirm);
        if (!scores) return std::nullopt;
        SearchStep step;
        step.file_bytes = problem_.fixed_bytes;
        for (const auto& tensor : problem_.tensors) {
            const auto type = recipes[1].at(tensor.name);
            step.file_bytes += std::ranges::find(tensor.choices, type, &TypeChoice::type)->bytes;
            if (type == recipes[0].at(tensor.name)) continue;
            step.from[tensor.name] = recipes[0].at(tensor.name);
            step.to[tensor.name] = type;
        }
        step.expected_gain = candidate.expected_gain;
        step.gain = kld_difference(scores->front(), scores->back());
        step.p = p_greater(step.gain);
        ++tests_here_;
        step.level = search_level / (tests_here_ * (tests_here_ + 1.0));
        step.accepted = step.p <= step.level;
        progress_.info(
            fmt::format("search, test {}: {} tensors changed, KLD lower by {:.3g} ± {:.2g}, p {:.2g} of {:.2g}: {}",
                        result_.steps.size() + 1, step.to.size(), step.gain.mean, step.gain.error, step.p, step.level,
                        step.accepted ? "accepted" : "not significant"));
        if (step.accepted) {
            for (std::size_t g = 0; g < groups_.tensors.size(); ++g) {
                const auto& name = groups_.tensors[g].name;
                if (candidate.groups.at(name) != now_.at(name))
                    std::erase_if(effects_, [&](const auto& effect) { return effect.first.group == g; });
            }
            now_ = candidate.groups;
            tests_here_ = 0.0;
        }
        result_.steps.push_back(std::move(step));
        return result_.steps.back().accepted;
    }

    const AllocationProblem& problem_;
    const std::uint64_t budget_bytes_;
    const RecipeScorer& scorer_;
    Progress& progress_;
    AllocationProblem groups_;
    std::map<std::string, std::vector<std::string>> members_;
    TypeMap now_;  // by the groups' names
    std::map<Change, Effect> effects_;
    std::set<TypeMap> tested_;
    double tests_here_ = 0.0;  // since the search came to this recipe
    SearchResult result_;
};

}  // namespace

std::size_t SearchResult::accepted() const {
    return static_cast<std::size_t>(std::ranges::count(steps, true, &SearchStep::accepted));
}

SearchResult search_recipe(const StartingRecipe& start, const RecipeScorer& scorer, Progress& progress) {
    return RecipeSearch(start, scorer, progress).run();
}

}  // namespace cerebellum
