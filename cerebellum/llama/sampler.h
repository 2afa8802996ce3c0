#pragma once

#include <cstdint>
#include <vector>

#include "cerebellum/core/progress.h"
#include "cerebellum/llama/model.h"

namespace cerebellum {

/// Text that the model itself writes: `n_sequences` sequences of `length` tokens, sampled at temperature 1 from the
/// first token on, without truncation of the distribution. Where a text ends, the next one begins in the same sequence.
/// Under such text the expected KL divergence per token is the divergence of the models as distributions over texts.
/// The same seed, model and thread count give the same tokens. Sequences are generated side by side in batches.
std::vector<std::vector<Token>> sample_sequences(const Model& model, int n_sequences, int length, std::uint64_t seed,
                                                 int threads, Progress& progress);

}  // namespace cerebellum
