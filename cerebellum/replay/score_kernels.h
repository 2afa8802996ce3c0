#pragma once

#include <cstdint>

namespace cerebellum {

/// log Σ exp(logits), max-shifted, sums in double.
double log_sum_exp(const float* logits, std::int64_t n);

/// out[i] = logits[i] − log Σ exp(logits), max-shifted, float in and out, sums in double.
void log_softmax_row(const float* logits, float* out, std::int64_t n);

/// How one position of a variant compares with the reference.
struct PositionScore {
    float kld = 0.0F;            // KL(p‖q) over the full vocabulary, nats
    float nll = 0.0F;            // −log q(target), nats; NaN without a target
    float reference_nll = 0.0F;  // −log p(target)
    float same_top = 0.0F;       // 1 where p and q have the same most probable token
};

/// `logits` of the variant, `reference` = log p, both of `n` tokens; target < 0 for none.
/// KL(p‖q) = Σ p·(eᵈ − 1 − d) with d = log q − log p: every term is ≥ 0 and errors of d enter squared, where the plain
/// Σ p·log(p/q) loses all its digits for near-lossless types.
PositionScore score_row(const float* logits, const float* reference, std::int64_t n, std::int32_t target);

}  // namespace cerebellum
