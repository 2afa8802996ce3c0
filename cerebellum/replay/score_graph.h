#pragma once

#include <ggml.h>

namespace cerebellum {

// What score_kernels.h computes, in ggml's own operations, for devices that cannot run ours: the logits never cross to
// the host.

/// log softmax over the rows of `logits` [n_vocab, n_tokens], max-shifted.
ggml_tensor* log_softmax_nodes(ggml_context* context, ggml_tensor* logits);

struct ScoreNodes {
    ggml_tensor* kld = nullptr;            // [1, n_tokens], nats
    ggml_tensor* log_q = nullptr;          // [1, n_tokens], of the next token
    ggml_tensor* log_p = nullptr;          // [1, n_tokens]
    ggml_tensor* top = nullptr;            // [n_tokens] I32: the most probable token
    ggml_tensor* reference_top = nullptr;  // [n_tokens] I32
};

/// Scores `logits` against `reference` = log p, both [n_vocab, n_tokens]; `targets` I32 [n_tokens] holds the next
/// tokens and any token where there is none.
ScoreNodes score_nodes(ggml_context* context, ggml_tensor* logits, ggml_tensor* reference, ggml_tensor* targets);

}  // namespace cerebellum
