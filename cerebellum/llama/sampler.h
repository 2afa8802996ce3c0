#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cerebellum/core/progress.h"
#include "cerebellum/llama/model.h"

namespace cerebellum {

/// Sequences that are continued at the same time.
inline constexpr int sampled_side_by_side = 32;

/// Text that the model itself writes: `n_sequences` sequences of `length` tokens, sampled at temperature 1 from the
/// first token on, without truncation of the distribution. Where a text ends, the next one begins in the same sequence.
/// Under such text the expected KL divergence per token is the divergence of the models as distributions over texts.
/// The same seed, model, place of the model and thread count give the same tokens. Sequences are generated side by side
/// in batches.
std::vector<std::vector<Token>> sample_sequences(const Model& model, int n_sequences, int length, std::uint64_t seed,
                                                 int threads, Progress& progress);

/// The first token at which the sum of the probabilities, at temperature 1, reaches a share of all of them: with a
/// random number of [0, 1), a random token. The arithmetic of llama.cpp's sampler "dist", which draws from mt19937.
Token sample_token(std::span<const float> logits, double share);

}  // namespace cerebellum
