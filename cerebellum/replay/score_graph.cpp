#include "cerebellum/replay/score_graph.h"

namespace cerebellum {

namespace {

/// One value of every row: values [n, n_rows], indices I32 [n_rows] → [1, n_rows].
ggml_tensor* pick(ggml_context* context, ggml_tensor* values, ggml_tensor* indices) {
    auto* one_by_one = ggml_reshape_3d(context, values, 1, values->ne[0], values->ne[1]);
    auto* picked = ggml_get_rows(context, one_by_one, ggml_reshape_2d(context, indices, 1, indices->ne[0]));
    return ggml_reshape_2d(context, picked, 1, values->ne[1]);
}

}  // namespace

ggml_tensor* log_softmax_nodes(ggml_context* context, ggml_tensor* logits) {
    if (!ggml_is_contiguous(logits)) logits = ggml_cont(context, logits);
    auto* max = pick(context, logits, ggml_argmax(context, logits));
    auto* shifted = ggml_sub(context, logits, max);
    auto* sum = ggml_sum_rows(context, ggml_exp(context, shifted));
    return ggml_sub(context, shifted, ggml_log(context, sum));
}

ScoreNodes score_nodes(ggml_context* context, ggml_tensor* logits, ggml_tensor* reference, ggml_tensor* targets) {
    ScoreNodes nodes;
    auto* log_q = log_softmax_nodes(context, logits);
    // Σ p·(eᵈ − 1 − d): see score_row. Where d is beyond the clamp, p is too small for the term to matter.
    constexpr float largest = 80.0F;
    auto* d = ggml_clamp(context, ggml_sub(context, log_q, reference), -3.0e38F, largest);
    auto* terms = ggml_mul(context, ggml_sub(context, ggml_expm1(context, d), d), ggml_exp(context, reference));
    nodes.kld = ggml_sum_rows(context, terms);
    nodes.log_q = pick(context, log_q, targets);
    nodes.log_p = pick(context, reference, targets);
    nodes.top = ggml_argmax(context, log_q);
    nodes.reference_top = ggml_argmax(context, reference);
    return nodes;
}

}  // namespace cerebellum
