#include "cerebellum/pipeline/allocation.h"

#include <fmt/format.h>

#include <algorithm>

#include "cerebellum/core/error.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/predict/damage.h"
#include "cerebellum/quantize/feedback_rounder.h"
#include "cerebellum/version.h"

namespace cerebellum {

namespace {

bool allows(RoundingChoice choice, const Encoding& encoding) {
    if (choice == RoundingChoice::feedback)
        return encoding.rounding == Rounding::feedback || !takes_feedback(encoding.type);
    return choice == RoundingChoice::automatic || encoding.rounding == Rounding::ggml;
}

}  // namespace

AllocationProblem make_problem(const GgufFile& source, const Journal& journal,
                               const std::optional<ImatrixInfo>& imatrix, std::uint64_t budget_bytes,
                               RoundingChoice rounding) {
    const auto measurements = journal.measurements();
    if (measurements.empty())
        throw Error(fmt::format("{} holds no measurements; run 'cerebellum ablate' first", journal.path().string()));
    const auto damage = predict_damage(measurements);
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
            const auto type = parse_encoding(entry.type);
            if (!type) throw Error(fmt::format("{} names an unknown type: {}", journal.path().string(), entry.type));
            if (!allows(rounding, *type)) continue;
            choices.choices.push_back({*type, tensor_bytes(tensor, type->type), entry.kld});
        }
        problem.tensors.push_back(std::move(choices));
    }
    return problem;
}

Recipe make_recipe(const GgufFile& source, const Journal& journal, const std::optional<ImatrixInfo>& imatrix,
                   std::uint64_t budget_bytes, RoundingChoice rounding) {
    const auto allocation = allocate(make_problem(source, journal, imatrix, budget_bytes, rounding));
    Recipe recipe;
    recipe.types = allocation.types;
    recipe.source_fingerprint = source.fingerprint();
    recipe.source_name = source.path().filename().string();
    recipe.file_bytes = allocation.file_bytes;
    recipe.predicted_kld = allocation.predicted_kld;
    recipe.provenance = {{"cerebellum", CEREBELLUM_VERSION},
                         {"llama.cpp", CEREBELLUM_LLAMA_VERSION},
                         {"budget_bytes", std::to_string(budget_bytes)},
                         {"lower_bound_kld", fmt::format("{:.9g}", allocation.lower_bound)},
                         {"optimal", allocation.exact ? "yes" : "within the gap to the lower bound"}};
    // Part of the file's metadata, and so of its size: whoever builds the recipe names the matrix the same way.
    if (imatrix) recipe.provenance["imatrix"] = imatrix->file;
    return recipe;
}

void note_moments(const Journal& journal, Recipe& recipe) {
    const bool feedback = std::ranges::any_of(
        recipe.types, [](const auto& entry) { return entry.second.rounding == Rounding::feedback; });
    const auto digest = journal.get_meta("moments_sha256");
    if (feedback && digest) recipe.provenance["moments_sha256"] = *digest;
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
