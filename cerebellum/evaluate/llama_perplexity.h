#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cerebellum/evaluate/token_scores.h"

/// The arithmetic of llama.cpp's llama-perplexity, operation by operation (tools/perplexity/perplexity.cpp), where our
/// own is more exact, so that its figures can be reproduced.
namespace cerebellum::llama_perplexity {

/// A row of the reference as the file of --kl-divergence-base holds it: log-probabilities in 16 bits, none below −16
/// from the best.
class SixteenBitRow {
  public:
    void assign(std::span<const float> logits);
    TokenScore compare(std::span<const float> candidate, Token target) const;

  private:
    std::vector<std::uint16_t> codes_;
    float scale_ = 0.0F;
    float min_log_prob_ = 0.0F;
};

double nll(std::span<const float> logits, Token target);

/// Log-probability summed up in single precision, as its multiple-choice scores are.
float log_prob(std::span<const float> logits, Token target);
/// Of the first token of an ending in --hellaswag, where the probability itself is rounded to single precision.
float log_of_rounded_prob(std::span<const float> logits, Token target);

}  // namespace cerebellum::llama_perplexity
