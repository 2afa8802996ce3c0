#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "cerebellum/allocate/recipe_problem.h"
#include "cerebellum/build/build_gguf.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/gguf/imatrix_file.h"
#include "cerebellum/journal/journal.h"
#include "cerebellum/pipeline/aim.h"

namespace cerebellum {

/// The choices that the journal's figures offer for each tensor of the source: every measured type in the roundings
/// that the aim allows, and the source's own type at no damage. Tensors without figures keep their type. Under another
/// objective than KLD the choices' damage is what predict_cost says.
AllocationProblem make_problem(const GgufFile& source, const Journal& journal,
                               const std::optional<ImatrixInfo>& imatrix, const Aim& aim = {});

/// The same from figures that are not, or not all, in a journal, and of which every window counts as it is.
AllocationProblem make_problem(const GgufFile& source, std::span<const Measurement> measurements,
                               const std::optional<ImatrixInfo>& imatrix, Objective objective = Objective::kld,
                               RoundingChoice rounding = RoundingChoice::automatic);

/// Names the second moments that the journal's figures were made with in a recipe that rounds with feedback.
void note_moments(const Journal& journal, Recipe& recipe);

/// The same without the source itself: `tensors` are all of its, in its order, and `header_bytes` is what a file takes
/// beside them.
AllocationProblem make_problem(std::span<const TensorInfo> tensors, std::uint64_t header_bytes,
                               std::span<const Measurement> measurements, Objective objective,
                               RoundingChoice rounding = RoundingChoice::automatic);

/// Leaves only choices of these types, and the source's own, which come first. None given: all stay.
void keep_types(AllocationProblem& problem, std::span<const ggml_type> types);

/// Sum of the tensors' predicted damages under a map of types; empty where some type was not measured.
std::optional<double> predicted_kld(const AllocationProblem& problem, const TypeMap& types);

}  // namespace cerebellum
