#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace cerebellum {

/// How errors of a matrix's weights show in its output: H = Σ x xᵀ of its input, damped, and what error feedback takes
/// from it. The change of the output that errors e of one row make is e H eᵀ, summed over the tokens of H.
///
/// Columns are rounded in the order of falling H_jj (activation order, as GPTQ has it). With H = V Vᵀ, V triangular in
/// that order, e H eᵀ = Σ_j V_jj² (e_j + Σ_{i before j} e_i V_ij / V_jj)², so that a column is best rounded from its
/// weight minus that inner sum: GPTQ's update, without the inverse. Immutable; threads may share it.
class InputMetric {
  public:
    /// `moments`: the lower triangle of Σ x xᵀ, row by row, n_cols·(n_cols + 1)/2 values. Throws Error where they are
    /// not finite.
    InputMetric(std::span<const float> moments, std::int64_t n_cols);

    /// Whether a matrix of so many columns can have one: memory grows with the square.
    static bool admits(std::int64_t n_cols) { return n_cols <= most_columns; }
    static std::uint64_t size_bytes(std::int64_t n_cols) {
        return 2 * sizeof(float) * static_cast<std::uint64_t>(n_cols * n_cols);
    }
    /// False where no input ever was anything but zero: then there is nothing to go by.
    bool usable() const { return usable_; }

    std::int64_t n_cols() const { return n_; }
    /// What was added to every diagonal element of H.
    float damping() const { return damping_; }
    /// Row of the damped H.
    const float* row(std::int64_t column) const { return h_.data() + column * n_; }
    /// The column at a position; positions are rounded from the last to the first.
    std::int64_t column(std::int64_t position) const { return order_[static_cast<std::size_t>(position)]; }
    /// V_ij / V_jj for position j, at the offsets i > j.
    const float* feedback(std::int64_t position) const { return v_.data() + position * n_; }
    /// V_jj².
    float pivot(std::int64_t position) const { return pivots_[static_cast<std::size_t>(position)]; }

  private:
    static constexpr std::int64_t most_columns = 16384;  // two matrices of 1 GiB

    bool factorize();

    std::int64_t n_ = 0;
    bool usable_ = false;
    float damping_ = 0.0f;
    std::vector<float> h_;
    std::vector<std::int64_t> order_;
    std::vector<float> v_;
    std::vector<float> pivots_;
};

}  // namespace cerebellum
