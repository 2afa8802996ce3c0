#include "cerebellum/pipeline/allocation.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "cerebellum/core/error.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/pipeline/whole_prediction.h"
#include "cerebellum/predict/objective.h"
#include "cerebellum/version.h"

namespace cerebellum {

AllocationProblem make_problem(const GgufFile& source, const Journal& journal,
                               const std::optional<ImatrixInfo>& imatrix, std::uint64_t budget_bytes, const Aim& aim) {
    const auto measurements = weighed_measurements(journal, aim);
    if (measurements.empty())
        throw Error(fmt::format("{} holds no measurements; run 'cerebellum ablate' first", journal.path().string()));
    const auto damage = predict_cost(measurements, aim.objective);
    AllocationProblem problem;
    problem.budget_bytes = budget_bytes;
    problem.fixed_bytes = fixed_bytes(source, imatrix);
    for (const auto& tensor : source.tensors()) {
        const auto measured = damage.find(tensor.name);
        if (measured == damage.end()) {
            problem.fixed_bytes += tensor_bytes(tensor, tensor.type);
            continue;
        }
        TensorChoices choices{tensor.name, {{tensor.type, tensor_bytes(tensor, tensor.type), 0.0}}};
        for (const auto& entry : measured->second) {
            const auto type = parse_type(entry.type);
            if (!type) throw Error(fmt::format("{} names an unknown type: {}", journal.path().string(), entry.type));
            choices.choices.push_back({*type, tensor_bytes(tensor, *type), entry.kld});
        }
        problem.tensors.push_back(std::move(choices));
    }
    return problem;
}

Recipe make_recipe(const GgufFile& source, const Journal& journal, const std::optional<ImatrixInfo>& imatrix,
                   std::uint64_t budget_bytes, const Aim& aim) {
    const auto problem = make_problem(source, journal, imatrix, budget_bytes, aim);
    const auto allocation = allocate(problem);
    Recipe recipe;
    recipe.types = allocation.types;
    recipe.source_fingerprint = source.fingerprint();
    recipe.source_name = source.path().filename().string();
    recipe.file_bytes = allocation.file_bytes;
    recipe.provenance = {{"cerebellum", CEREBELLUM_VERSION},
                         {"llama.cpp", CEREBELLUM_LLAMA_VERSION},
                         {"budget_bytes", std::to_string(budget_bytes)},
                         {"lower_bound_kld", fmt::format("{:.9g}", allocation.lower_bound)},
                         {"optimal", allocation.exact ? "yes" : "within the gap to the lower bound"}};
    // Part of the file's metadata, and so of its size: whoever builds the recipe names the matrix the same way.
    if (imatrix) recipe.provenance["imatrix"] = imatrix->file;
    if (!aim.profile.empty()) recipe.provenance["profile"] = aim.profile;
    if (aim.objective == Objective::kld) {
        note_prediction(problem, make_calibration(problem, journal, aim), recipe);
        return recipe;
    }
    recipe.provenance["objective"] = objective_name(aim.objective);
    recipe.provenance["predicted_objective"] = fmt::format("{:.6g}", allocation.predicted_kld);
    recipe.provenance["lower_bound_objective"] = std::exchange(recipe.provenance["lower_bound_kld"], "");
    recipe.provenance.erase("lower_bound_kld");
    const Aim kld{Objective::kld, aim.profile};
    const auto in_kld = make_problem(source, journal, imatrix, budget_bytes, kld);
    note_prediction(in_kld, make_calibration(in_kld, journal, kld), recipe);
    return recipe;
}

std::optional<double> predicted_kld(const AllocationProblem& problem, const TypeMap& types) {
    double sum = 0.0;
    for (const auto& tensor : problem.tensors) {
        const auto wanted = types.find(tensor.name);
        if (wanted == types.end()) continue;
        const auto choice = std::ranges::find(tensor.choices, wanted->second, &TypeChoice::type);
        if (choice == tensor.choices.end()) return std::nullopt;
        sum += choice->kld;
    }
    return sum;
}

}  // namespace cerebellum
