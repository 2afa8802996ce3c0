#include "cerebellum/replay/engine.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cerebellum/core/error.h"

namespace cerebellum {

namespace {

constexpr std::int64_t score_fields = sizeof(PositionScore) / sizeof(float);
static_assert(sizeof(PositionScore) == score_fields * sizeof(float));

const float* row(const ggml_tensor* tensor, std::int64_t index) {
    return reinterpret_cast<const float*>(static_cast<const char*>(tensor->data) +
                                          static_cast<std::size_t>(index) * tensor->nb[1]);
}

/// Calls body(row) for this thread's share of `rows`.
template <typename Body>
void for_rows(std::int64_t rows, int thread, int threads, Body&& body) {
    for (std::int64_t i = thread; i < rows; i += threads) body(i);
}

void log_softmax_operation(ggml_tensor* dst, const ggml_tensor*, const ggml_tensor* logits, int thread, int threads,
                           void*) {
    for_rows(logits->ne[1], thread, threads,
             [&](std::int64_t i) { log_softmax_row(row(logits, i), const_cast<float*>(row(dst, i)), logits->ne[0]); });
}

void score_operation(ggml_tensor* dst, int thread, int threads, void*) {
    const auto* logits = dst->src[0];
    const auto* reference = dst->src[1];
    const auto* targets = static_cast<const std::int32_t*>(dst->src[2]->data);
    for_rows(logits->ne[1], thread, threads, [&](std::int64_t i) {
        const auto score = score_row(row(logits, i), row(reference, i), logits->ne[0], targets[i]);
        std::memcpy(const_cast<float*>(row(dst, i)), &score, sizeof score);
    });
}

}  // namespace

int burn_in(int n_tokens) {
    return n_tokens / 8;
}

WindowScore sum_scores(std::span<const PositionScore> scores, int first_position) {
    WindowScore sum;
    for (auto i = static_cast<std::size_t>(first_position); i < scores.size(); ++i) {
        if (std::isnan(scores[i].reference_nll)) continue;  // no next token
        sum.count += 1.0;
        sum.kld += static_cast<double>(scores[i].kld);
        sum.nll += static_cast<double>(scores[i].nll);
        sum.reference_nll += static_cast<double>(scores[i].reference_nll);
        sum.same_top += static_cast<double>(scores[i].same_top);
    }
    return sum;
}

/// log p of the window at hand, [n_vocab, n_tokens], and its next tokens, in memory that all heads share.
struct ReplayEngine::Reference {
    GgmlContext context;
    GgmlBuffer buffer;
    ggml_tensor* log_p = nullptr;
    ggml_tensor* targets = nullptr;
};

ReplayEngine::ReplayEngine(const Model& model, int n_tokens, int threads)
    : model_(&model), n_tokens_(n_tokens), recorder_(model, n_tokens), topology_(recorder_.graph()), device_(threads) {}

ReplayEngine::~ReplayEngine() = default;

Window ReplayEngine::prepare(std::vector<Token> tokens) {
    Window window;
    window.inputs = recorder_.inputs(tokens);
    window.tokens = std::move(tokens);
    return window;
}

double ReplayEngine::largest_deviation(std::span<const Window> windows) {
    Decoder decoder(*model_, n_tokens_, device_.threads());
    const auto cuts = topology_.cuts();
    const int logits = topology_.graph().logits;
    double largest = 0.0;
    std::vector<LiveState> states(windows.size());
    for (std::size_t c = 0; c + 1 < cuts.size(); ++c) {
        const bool last = c + 2 == cuts.size();
        Slice::Options options;
        if (last) options.reads = {logits};
        Slice slice(topology_, device_, cuts[c], cuts[c + 1], options);
        for (std::size_t w = 0; w < windows.size(); ++w) {
            slice.run(windows[w].inputs, states[w]);
            if (!last) {
                states[w] = slice.live_out(states[w]);
                continue;
            }
            const auto replayed = slice.read(logits);
            const auto expected = decoder.decode(windows[w].tokens);
            if (std::memcmp(replayed.data(), expected.data(), replayed.size()) == 0) continue;
            const auto* values = reinterpret_cast<const float*>(replayed.data());
            for (std::size_t i = 0; i < expected.size(); ++i) {
                const double difference = std::fabs(static_cast<double>(values[i]) - static_cast<double>(expected[i]));
                if (!(difference <= largest)) largest = difference;  // NaN counts as a deviation
            }
        }
    }
    return largest;
}

void ReplayEngine::make_reference() {
    if (reference_) return;
    reference_ = std::make_unique<Reference>();
    reference_->context = make_tensor_context(2);
    const auto& logits = topology_.graph().tensors[static_cast<std::size_t>(topology_.graph().logits)];
    reference_->log_p = ggml_new_tensor_2d(reference_->context.get(), GGML_TYPE_F32, logits.shape[0], logits.shape[1]);
    reference_->targets = ggml_new_tensor_1d(reference_->context.get(), GGML_TYPE_I32, logits.shape[1]);
    reference_->buffer = device_.allocate(reference_->context.get());
}

void ReplayEngine::set_reference(const Window& window, const LiveState& at_head) {
    make_reference();
    if (!reference_head_) {
        Slice::Options options;
        options.tail = [this](ggml_context* context, ggml_tensor* node) {
            return ggml_map_custom2_inplace(context, reference_->log_p, node, log_softmax_operation, GGML_N_TASKS_MAX,
                                            nullptr);
        };
        reference_head_ =
            std::make_unique<Slice>(topology_, device_, topology_.head_cut(), topology_.n_nodes(), options);
    }
    std::vector<std::int32_t> targets(window.tokens.begin() + 1, window.tokens.end());
    targets.push_back(-1);
    ggml_backend_tensor_set(reference_->targets, targets.data(), 0, targets.size() * sizeof(std::int32_t));
    reference_head_->run(window.inputs, at_head);
}

std::unique_ptr<ReplayEngine::Head> ReplayEngine::make_head(const Substitutions& substitutes) {
    make_reference();
    Slice::Options options;
    options.substitutes = substitutes;
    options.tail = [this](ggml_context* context, ggml_tensor* node) {
        ggml_tensor* arguments[] = {node, reference_->log_p, reference_->targets};
        return ggml_custom_4d(context, GGML_TYPE_F32, score_fields, n_tokens_, 1, 1, arguments, 3, score_operation,
                              GGML_N_TASKS_MAX, nullptr);
    };
    return std::make_unique<Head>(
        std::make_unique<Slice>(topology_, device_, topology_.head_cut(), topology_.n_nodes(), options));
}

WindowScore ReplayEngine::score(const Window& window, const LiveState& at_head) {
    if (!plain_head_) plain_head_ = make_head({});
    return score(*plain_head_, window, at_head);
}

WindowScore ReplayEngine::score(Head& head, const Window& window, const LiveState& at_head) {
    head.slice().run(window.inputs, at_head);
    const auto bytes = head.slice().read_tail();
    std::vector<PositionScore> scores(bytes.size() / sizeof(PositionScore));
    std::memcpy(scores.data(), bytes.data(), bytes.size());
    return sum_scores(scores, burn_in(n_tokens_));
}

}  // namespace cerebellum
