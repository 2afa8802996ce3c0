#pragma once

#include <cstdint>
#include <span>

namespace cerebellum {

/// Factors a positive definite n × n matrix, column by column, in place: its lower triangle becomes that of L with
/// A = L Lᵀ. What lies above the diagonal is scratch. False where it is not positive definite in single precision; then
/// nothing in it is of use.
///
/// Libraries choose the order of their sums by the processor's caches and registers. Here every element takes its terms
/// in the order of the columns, each rounded by itself, so that a recipe's bytes come out alike on any machine.
bool factor_cholesky(std::span<float> matrix, std::int64_t n);

}  // namespace cerebellum
