#include "cerebellum/pipeline/own_recipes.h"

#include <fmt/format.h>

#include <algorithm>

#include "cerebellum/core/error.h"
#include "cerebellum/pipeline/allocation.h"
#include "cerebellum/pipeline/mix_scores.h"
#include "cerebellum/pipeline/sequential.h"

namespace cerebellum {

namespace {

class Maker {
  public:
    Maker(Session& session, const GgufFile& source, const OwnRecipesOptions& options, const std::string& name,
          Progress& progress)
        : session_(session),
          source_(source),
          options_(options),
          name_(name),
          progress_(progress),
          imatrix_(imatrix_info(session.imatrix(), session.imatrix_name())),
          in_kld_{Objective::kld, options.aim.profile, options.aim.rounding, options.aim.types} {
        own_.goal = options.request.goal;
    }

    OwnRecipes make() {
        problem_ = make_problem(source_, session_.journal(), imatrix_, options_.aim);
        own_.kld_problem = make_problem(source_, session_.journal(), imatrix_, in_kld_);
        allocate();
        if (own_.goal.kind == AllocationGoal::Kind::max_kld) correct_goal();
        const auto budgets = neighbouring_budgets(own_.budget_bytes, session_.options().effort);
        measure_recipes(session_, own_.kld_problem, budgets, progress_);
        own_.calibration = make_calibration(own_.kld_problem, session_.journal(), in_kld_);
        note_prediction(own_.kld_problem, own_.calibration, own_.recipe);
        own_.problem = constrained(problem_, options_.request.constraints, own_.budget_bytes);
        if (options_.rounds > 0) {
            auto refinement = refine(session_, {own_.kld_problem, own_.budget_bytes, own_.versions.back().types},
                                     options_.rounds, in_kld_, progress_);
            own_.rounds = std::move(refinement.rounds);
            add_version(refinement.types, "rounds");
        }
        own_.n_before_search = own_.versions.size();
        if (options_.search_seconds > 0.0) {
            own_.search = search_for(session_, {own_.problem, own_.budget_bytes, own_.versions.back().types},
                                     options_.search_seconds, options_.aim, progress_);
            add_version(own_.search->result.types, "search");
        }
        return std::move(own_);
    }

  private:
    void allocate() {
        const auto solved = solve_goal(source_, problem_, {own_.goal, options_.request.constraints});
        own_.recipe = make_recipe(source_, session_.journal(), solved, options_.aim);
        own_.budget_bytes = solved.budget_bytes;
        own_.remarks = solved.remarks;
        Contender ours;
        ours.kind = Contender::Kind::ours;
        ours.name = name_;
        ours.fits = true;
        ours.types = complete_types(source_, own_.recipe.types);
        ours.bytes = own_.recipe.file_bytes;
        own_.versions = {std::move(ours)};
    }

    void correct_goal() {
        constexpr int most_rounds = 4;
        constexpr double margin = 0.98;
        const double wanted = options_.request.goal.max_kld;
        for (int round = 0;; ++round) {
            Contender* const alone[] = {&own_.versions.front()};
            constexpr TextPart part[] = {TextPart::selection};
            replay_scores(session_, alone, part, options_.aim, progress_);
            const double measured = selection_cost(own_.versions.front(), Objective::kld);
            if (measured <= wanted) return;
            if (round == most_rounds)
                throw Error(
                    fmt::format("the smallest file predicted to stay under a KLD of {} measures {:.6g} on the "
                                "selection text even after {} corrections; ask for a --size instead",
                                wanted, measured, most_rounds));
            own_.goal.max_kld *= margin * wanted / measured;
            progress_.info(fmt::format("measured {:.6g} where at most {:.6g} is wanted: allocating for {:.6g}",
                                       measured, wanted, own_.goal.max_kld));
            allocate();
        }
    }

    void add_version(const TypeMap& types, const char* without) {
        if (changed_types(source_, types) == changed_types(source_, own_.versions.back().types)) return;
        auto next = own_.versions.back();
        own_.versions.back().name += (name_.find(" without ") == std::string::npos ? " without " : " and ");
        own_.versions.back().name += without;
        next.types = complete_types(source_, types);
        next.bytes = predicted_file_bytes(source_, next.types, imatrix_, Provenance::full);
        own_.versions.push_back(std::move(next));
    }

    Session& session_;
    const GgufFile& source_;
    const OwnRecipesOptions& options_;
    std::string name_;
    Progress& progress_;
    ImatrixInfo imatrix_;
    Aim in_kld_;
    AllocationProblem problem_;
    OwnRecipes own_;
};

}  // namespace

bool OwnRecipes::holds(const Contender* contender) const {
    return std::ranges::any_of(versions, [&](const Contender& version) { return &version == contender; });
}

Recipe OwnRecipes::recipe_of(const GgufFile& source, const Contender& contender,
                             const std::optional<ImatrixInfo>& imatrix) const {
    auto result = recipe;
    if (&contender == &versions.front()) return result;
    result.types = contender.types;
    note_prediction(kld_problem, calibration, result);
    result.file_bytes = predicted_file_bytes(source, contender.types, imatrix, Provenance::full);
    if (contender.kind != Contender::Kind::ours) return result;
    result.provenance["optimal"] = "measured around an earlier recipe";
    if (!rounds.empty()) result.provenance["rounds"] = std::to_string(rounds.size());
    if (search && &contender == &versions.back()) result.provenance.merge(search_provenance(search->result));
    return result;
}

std::optional<WholePrediction> OwnRecipes::prediction_of(const TypeMap& types) const {
    return predict_whole(kld_problem, calibration, types);
}

void check_own_recipes_options(const OwnRecipesOptions& options) {
    const auto kind = options.request.goal.kind;
    const bool sized = kind == AllocationGoal::Kind::size, in_kld = options.aim.objective == Objective::kld;
    if (options.rounds > 0 && (!in_kld || !sized || !options.request.constraints.empty()))
        throw UsageError("--rounds goes with a size, without constraints, and with --objective kld only");
    if (options.search_seconds > 0.0 && (!in_kld || !sized))
        throw UsageError("--search goes with a size and with --objective kld only");
    if (kind == AllocationGoal::Kind::max_kld && !in_kld) throw UsageError("--max-kld goes with --objective kld only");
}

OwnRecipes make_own_recipes(Session& session, const GgufFile& source, const OwnRecipesOptions& options,
                            const std::string& name, Progress& progress) {
    if (options.sequential) {
        const auto budget = options.request.goal.kind == AllocationGoal::Kind::size
                                ? options.request.goal.size.bytes(source.n_weights())
                                : source.file_size();
        progress.info(describe(measure_sequentially(session, {.budgets_bytes = {budget}}, progress)));
    } else {
        session.measure();
    }
    const StageTimer timer(session.times(), "allocating");
    return Maker(session, source, options, name, progress).make();
}

}  // namespace cerebellum
