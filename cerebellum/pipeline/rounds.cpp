#include "cerebellum/pipeline/rounds.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "cerebellum/allocate/marginal.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/pipeline/mix_scores.h"

namespace cerebellum {

namespace {

/// Changes measured in one round at most: as many whole replays.
constexpr std::size_t most_trials = 64;

class Refiner {
  public:
    Refiner(Session& session, const StartingRecipe& start, const Aim& aim, Progress& progress)
        : session_(session),
          problem_(start.problem),
          budget_bytes_(start.budget_bytes),
          aim_(aim),
          progress_(progress) {}

    /// One round; `types` becomes the new recipe where it is taken.
    Round run(TypeMap& types) {
        auto moves = marginal_moves(problem_, types);
        if (moves.size() > most_trials) moves.resize(most_trials);
        std::vector<TypeMap> mixes = {types};
        for (const auto& move : moves) {
            mixes.push_back(types);
            mixes.back()[problem_.tensors[move.tensor].name] = choice_of(move).type;
        }
        const auto scores = measure(mixes);
        const auto next = allocate(around(types, moves, scores), budget_bytes_).types;
        Round round;
        round.tried = moves.size();
        for (const auto& [name, type] : next)
            if (types.at(name) != type) ++round.changed;
        if (round.changed == 0) return round;
        const auto after = measure({with(types, next)});
        round.gain = kld_difference(scores.front(), after.front());
        round.taken = round.gain.mean > 2.0 * round.gain.error;
        if (round.taken) types = with(types, next);
        return round;
    }

  private:
    using Scores = std::vector<WindowScore>;

    const TypeChoice& choice_of(const Move& move) const { return problem_.tensors[move.tensor].choices[move.choice]; }

    static TypeMap with(TypeMap types, const TypeMap& changes) {
        for (const auto& [name, type] : changes) types[name] = type;
        return types;
    }

    std::vector<Scores> measure(const std::vector<TypeMap>& mixes) {
        return measure_scores(session_, mixes, TextPart::measured, "trial", aim_, progress_);
    }

    /// Every tensor's present type at no cost, and what was measured at what it changes. scores[0] is the recipe's.
    AllocationProblem around(const TypeMap& types, const std::vector<Move>& moves,
                             const std::vector<Scores>& scores) const {
        auto local = problem_;
        for (auto& tensor : local.tensors) {
            const auto now = *std::ranges::find(tensor.choices, types.at(tensor.name), &TypeChoice::type);
            tensor.choices = {{now.type, now.bytes, 0.0}};
        }
        for (std::size_t m = 0; m < moves.size(); ++m) {
            const auto& choice = choice_of(moves[m]);
            if (!is_usable(scores[0]) || !is_usable(scores[m + 1])) continue;
            local.tensors[moves[m].tensor].choices.push_back(
                {choice.type, choice.bytes, kld_difference(scores[m + 1], scores[0]).mean});
        }
        return local;
    }

    Session& session_;
    const AllocationProblem& problem_;
    const std::uint64_t budget_bytes_;
    const Aim& aim_;
    Progress& progress_;
};

}  // namespace

Refinement refine(Session& session, const StartingRecipe& start, int n_rounds, const Aim& aim, Progress& progress) {
    Refinement result{start.types, {}};
    Refiner refiner(session, start, aim, progress);
    for (int round = 0; round < n_rounds; ++round) {
        result.rounds.push_back(refiner.run(result.types));
        const auto& last = result.rounds.back();
        progress.info(
            fmt::format("round {}: {} changes tried, {} tensors would change, KLD lower by {:.3g} ± {:.2g}: {}",
                        round + 1, last.tried, last.changed, last.gain.mean, last.gain.error,
                        last.taken ? "taken" : "not significant, left as it was"));
        if (!last.taken) break;
    }
    return result;
}

}  // namespace cerebellum
