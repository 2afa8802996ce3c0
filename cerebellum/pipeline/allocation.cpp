#include "cerebellum/pipeline/allocation.h"

#include <fmt/format.h>

#include <algorithm>

#include "cerebellum/core/error.h"
#include "cerebellum/predict/curve.h"

namespace cerebellum {

AllocationProblem make_problem(const GgufFile& source, const Journal& journal,
                               const std::optional<ImatrixInfo>& imatrix, std::uint64_t budget_bytes) {
    const auto measurements = journal.measurements();
    if (measurements.empty())
        throw Error(fmt::format("{} holds no measurements; run 'cerebellum ablate' first", journal.path().string()));
    return make_problem(source, measurements, imatrix, budget_bytes);
}

AllocationProblem make_problem(const GgufFile& source, std::span<const Measurement> measurements,
                               const std::optional<ImatrixInfo>& imatrix, std::uint64_t budget_bytes) {
    const auto curves = fit_curves(measurements);
    AllocationProblem problem;
    problem.budget_bytes = budget_bytes;
    problem.fixed_bytes = fixed_bytes(source, imatrix);
    for (const auto& tensor : source.tensors()) {
        const auto measured = curves.find(tensor.name);
        if (measured == curves.end()) {
            problem.fixed_bytes += tensor_bytes(tensor, tensor.type);
            continue;
        }
        TensorChoices choices{tensor.name, {{tensor.type, tensor_bytes(tensor, tensor.type), 0.0}}};
        for (const auto& point : measured->second.points)
            choices.choices.push_back({point.type, tensor_bytes(tensor, point.type), point.kld});
        problem.tensors.push_back(std::move(choices));
    }
    return problem;
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
