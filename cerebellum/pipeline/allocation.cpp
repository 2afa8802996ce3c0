#include "cerebellum/pipeline/allocation.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <vector>

#include "cerebellum/core/error.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/predict/curve.h"
#include "cerebellum/predict/objective.h"

namespace cerebellum {

namespace {

struct TypeCost {
    ggml_type type = GGML_TYPE_COUNT;
    double cost = 0.0;
};

/// By tensor. Damage in KLD is fitted to be monotone; other objectives are rates on it.
std::map<std::string, std::vector<TypeCost>> costs_of(std::span<const Measurement> measurements, Objective objective) {
    std::map<std::string, std::vector<TypeCost>> costs;
    if (objective == Objective::kld)
        for (const auto& [tensor, curve] : fit_curves(measurements))
            for (const auto& point : curve.points) costs[tensor].push_back({point.type, point.kld});
    else
        for (const auto& [tensor, damages] : predict_cost(measurements, objective))
            for (const auto& damage : damages) costs[tensor].push_back({parse_type(damage.type).value(), damage.kld});
    return costs;
}

AllocationProblem problem_of(std::span<const TensorInfo> tensors, std::uint64_t header_bytes,
                             std::span<const Measurement> measurements, Objective objective) {
    const auto costs = costs_of(measurements, objective);
    AllocationProblem problem;
    problem.fixed_bytes = header_bytes;
    for (const auto& tensor : tensors) {
        const auto measured = costs.find(tensor.name);
        if (measured == costs.end()) {
            problem.fixed_bytes += tensor_bytes(tensor, tensor.type);
            continue;
        }
        TensorChoices choices{tensor.name, {{tensor.type, tensor_bytes(tensor, tensor.type), 0.0}}};
        for (const auto& [type, cost] : measured->second)
            choices.choices.push_back({type, tensor_bytes(tensor, type), cost});
        problem.tensors.push_back(std::move(choices));
    }
    return problem;
}

}  // namespace

AllocationProblem make_problem(const GgufFile& source, const Journal& journal,
                               const std::optional<ImatrixInfo>& imatrix, std::uint64_t budget_bytes, const Aim& aim) {
    const auto measurements = weighed_measurements(journal, aim);
    if (measurements.empty())
        throw Error(fmt::format("{} holds no measurements; run 'cerebellum ablate' first", journal.path().string()));
    return make_problem(source, measurements, imatrix, budget_bytes, aim.objective);
}

AllocationProblem make_problem(const GgufFile& source, std::span<const Measurement> measurements,
                               const std::optional<ImatrixInfo>& imatrix, std::uint64_t budget_bytes,
                               Objective objective) {
    auto problem = problem_of(source.tensors(), fixed_bytes(source, imatrix), measurements, objective);
    problem.budget_bytes = budget_bytes;
    return problem;
}

AllocationProblem make_problem(std::span<const TensorInfo> tensors, std::span<const Measurement> measurements) {
    return problem_of(tensors, 0, measurements, Objective::kld);
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
