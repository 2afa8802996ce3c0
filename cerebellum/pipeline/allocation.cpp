#include "cerebellum/pipeline/allocation.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <vector>

#include "cerebellum/core/error.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/predict/curve.h"
#include "cerebellum/predict/objective.h"

namespace cerebellum {

namespace {

struct TypeCost {
    Encoding type;
    double cost = 0.0;
};

Encoding known_encoding(const std::string& tensor, const std::string& name) {
    const auto encoding = parse_encoding(name);
    if (!encoding) throw Error(fmt::format("the figures of {} name an unknown type: {}", tensor, name));
    return *encoding;
}

/// By tensor. Damage in KLD is fitted to be monotone; other objectives are rates on it.
std::map<std::string, std::vector<TypeCost>> costs_of(std::span<const Measurement> measurements, Objective objective) {
    std::map<std::string, std::vector<TypeCost>> costs;
    if (objective == Objective::kld)
        for (const auto& [tensor, curve] : fit_curves(measurements))
            for (const auto& point : curve.points) costs[tensor].push_back({point.type, point.kld});
    else
        for (const auto& [tensor, damages] : predict_cost(measurements, objective))
            for (const auto& damage : damages)
                costs[tensor].push_back({known_encoding(tensor, damage.type), damage.kld});
    return costs;
}

/// Figures of ggml's rounding do not depend on any others. Those of feedback do not either, but where a type has none
/// its figure from ggml stands on ggml's anchors: these go only afterwards.
std::map<std::string, std::vector<TypeCost>> costs_of(std::span<const Measurement> measurements, Objective objective,
                                                      RoundingChoice rounding) {
    const auto has_feedback = [](const Encoding& type) { return type.rounding == Rounding::feedback; };
    if (rounding == RoundingChoice::ggml) {
        std::vector<Measurement> plain;
        for (const auto& m : measurements)
            if (!has_feedback(known_encoding(m.tensor, m.type))) plain.push_back(m);
        return costs_of(plain, objective);
    }
    auto costs = costs_of(measurements, objective);
    if (rounding == RoundingChoice::feedback)
        for (auto& [tensor, known] : costs) {
            std::set<ggml_type> with_feedback;
            for (const auto& [type, cost] : known)
                if (has_feedback(type)) with_feedback.insert(type.type);
            std::erase_if(known, [&](const TypeCost& entry) {
                return !has_feedback(entry.type) && with_feedback.contains(entry.type.type);
            });
        }
    return costs;
}

}  // namespace

AllocationProblem make_problem(const GgufFile& source, const Journal& journal,
                               const std::optional<ImatrixInfo>& imatrix, const Aim& aim) {
    const auto measurements = weighed_measurements(journal, aim);
    if (measurements.empty())
        throw Error(fmt::format("{} holds no measurements; run 'cerebellum ablate' first", journal.path().string()));
    auto problem = make_problem(source, measurements, imatrix, aim.objective, aim.rounding);
    keep_types(problem, aim.types);  // only now: figures of others may be what those of these were carried over from
    return problem;
}

void keep_types(AllocationProblem& problem, std::span<const ggml_type> types) {
    if (types.empty()) return;
    for (auto& tensor : problem.tensors) {
        const auto own = tensor.choices.front().type;
        std::erase_if(tensor.choices, [&](const TypeChoice& choice) {
            return choice.type != own && std::ranges::find(types, choice.type.type) == types.end();
        });
    }
}

AllocationProblem make_problem(const GgufFile& source, std::span<const Measurement> measurements,
                               const std::optional<ImatrixInfo>& imatrix, Objective objective,
                               RoundingChoice rounding) {
    return make_problem(source.tensors(), fixed_bytes(source, imatrix), measurements, objective, rounding);
}

AllocationProblem make_problem(std::span<const TensorInfo> tensors, std::uint64_t header_bytes,
                               std::span<const Measurement> measurements, Objective objective,
                               RoundingChoice rounding) {
    const auto costs = costs_of(measurements, objective, rounding);
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
            choices.choices.push_back({type, tensor_bytes(tensor, type.type), cost});
        problem.tensors.push_back(std::move(choices));
    }
    return problem;
}

void note_moments(const Journal& journal, Recipe& recipe) {
    constexpr auto key = "moments_sha256";
    const auto digest = journal.get_meta(key);
    recipe.provenance.erase(key);
    if (digest && needs_moments(recipe.types)) recipe.provenance[key] = *digest;
}

std::optional<double> predicted_kld(const AllocationProblem& problem, const TypeMap& types) {
    double sum = 0.0;
    for (const auto& tensor : problem.tensors) {
        const auto wanted = types.find(tensor.name);
        if (wanted == types.end()) continue;
        const auto choice = std::ranges::find(tensor.choices, wanted->second, &TypeChoice::type);
        if (choice == tensor.choices.end()) return std::nullopt;
        sum += choice->cost;
    }
    return sum;
}

}  // namespace cerebellum
