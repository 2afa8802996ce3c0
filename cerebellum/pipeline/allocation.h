#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "cerebellum/allocate/recipe_problem.h"
#include "cerebellum/build/build_gguf.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/gguf/imatrix_file.h"
#include "cerebellum/journal/journal.h"

namespace cerebellum {

/// The choices that the journal's figures offer for each tensor of the source: every measured type, and the source's
/// own type at no damage. Tensors without figures keep their type.
AllocationProblem make_problem(const GgufFile& source, const Journal& journal,
                               const std::optional<ImatrixInfo>& imatrix, std::uint64_t budget_bytes);

/// The same from figures that are not, or not all, in a journal.
AllocationProblem make_problem(const GgufFile& source, std::span<const Measurement> measurements,
                               const std::optional<ImatrixInfo>& imatrix, std::uint64_t budget_bytes);

/// Sum of the tensors' predicted damages under a map of types; empty where some type was not measured.
std::optional<double> predicted_kld(const AllocationProblem& problem, const TypeMap& types);

}  // namespace cerebellum
