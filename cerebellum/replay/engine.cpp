#include "cerebellum/replay/engine.h"

#include <fmt/format.h>
#include <ggml-cpu.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cerebellum/core/error.h"
#include "cerebellum/core/parallel.h"
#include "cerebellum/replay/score_graph.h"

namespace cerebellum {

namespace {

constexpr std::int64_t score_fields = sizeof(PositionScore) / sizeof(float);
static_assert(sizeof(PositionScore) == score_fields * sizeof(float));

const float* row(const ggml_tensor* tensor, std::int64_t index) {
    return reinterpret_cast<const float*>(static_cast<const char*>(tensor->data) +
                                          static_cast<std::size_t>(index) * tensor->nb[1]);
}

/// Calls body(row) for this thread's share of the rows that are scored.
template <typename Body>
void for_scored_rows(std::int64_t rows, int thread, int threads, Body&& body) {
    for (std::int64_t i = burn_in(static_cast<int>(rows)) + thread; i < rows; i += threads) body(i);
}

template <typename T>
std::vector<T> values(const std::vector<std::byte>& bytes) {
    std::vector<T> result(bytes.size() / sizeof(T));
    std::memcpy(result.data(), bytes.data(), bytes.size());
    return result;
}

void log_softmax_operation(ggml_tensor* dst, const ggml_tensor*, const ggml_tensor* logits, int thread, int threads,
                           void*) {
    for_scored_rows(logits->ne[1], thread, threads, [&](std::int64_t i) {
        log_softmax_row(row(logits, i), const_cast<float*>(row(dst, i)), logits->ne[0]);
    });
}

void score_operation(ggml_tensor* dst, int thread, int threads, void*) {
    const auto* logits = dst->src[0];
    const auto* reference = dst->src[1];
    const auto* targets = static_cast<const std::int32_t*>(dst->src[2]->data);
    for_scored_rows(logits->ne[1], thread, threads, [&](std::int64_t i) {
        const auto score = score_row(row(logits, i), row(reference, i), logits->ne[0], targets[i]);
        std::memcpy(const_cast<float*>(row(dst, i)), &score, sizeof score);
    });
}

/// Of several devices, what all of them together may take.
MemoryLimits limits_of_all(const EngineOptions& options) {
    auto limits = options.limits;
    limits.device_bytes *= 1 + options.more_devices.size();
    return limits;
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

ReplayEngine::ReplayEngine(const Model& model, int n_tokens, const EngineOptions& options)
    : model_(&model),
      n_tokens_(n_tokens),
      recorder_(model, n_tokens),
      topology_(recorder_.graph()),
      device_(options.device, options.threads),
      weights_(device_),
      memory_plan_(plan_memory(memory_needs(topology_, options.n_windows), limits_of_all(options), device_.is_host())) {
    value_limits_ = {memory_plan_.device_value_bytes, memory_plan_.host_value_bytes, options.limits.scratch_folder};
    place_on_devices(options);
    weights_.set_limit(memory_plan_.weight_bytes);
    reserve_device_bytes(0);
}

ReplayEngine::~ReplayEngine() = default;

void ReplayEngine::place_on_devices(const EngineOptions& options) {
    if (options.more_devices.empty()) return;
    if (!memory_plan_.resident)
        throw Error(
            "the devices together have less memory than the model's weights take; name more of them, or use one "
            "--device alone, which streams weights");
    std::vector<std::size_t> capacities = {device_.free_bytes()};
    for (const auto& name : options.more_devices) {
        others_.push_back(std::make_unique<Other>(name, options.threads));
        capacities.push_back(others_.back()->device.free_bytes());
    }
    for (auto& capacity : capacities) {
        if (options.limits.device_bytes > 0) capacity = std::min(capacity, options.limits.device_bytes);
        capacity = std::max<std::size_t>(capacity, 1);  // some devices do not say
    }
    device_of_range_ = spread_ranges(memory_plan_.needs.range_bytes, capacities);
    device_of_range_.back() = 0;  // the head, with the reference that it is scored against
    host_inputs_ = std::make_unique<ValueStore>(ggml_backend_cpu_buffer_type());
}

std::size_t ReplayEngine::device_of(int node) const {
    if (device_of_range_.empty()) return 0;
    const auto cuts = topology_.cuts();
    const auto behind = std::ranges::upper_bound(cuts, node) - cuts.begin();
    return device_of_range_[std::min(static_cast<std::size_t>(behind) - 1, device_of_range_.size() - 1)];
}

std::unique_ptr<ReplayEngine> ReplayEngine::on_the_cpu() const {
    return std::make_unique<ReplayEngine>(*model_, n_tokens_, device_.threads());
}

std::size_t ReplayEngine::spare_device_bytes(int node) {
    const auto other = device_of(node);
    auto& device = device_at(node);
    if (device.is_host()) return 0;
    // The other half is for the states and temporaries that grow meanwhile.
    if (value_limits_.device_bytes != MemoryPlan::unlimited) return value_limits_.device_bytes / 2;
    const auto& weights = other == 0 ? weights_ : others_[other - 1]->weights;
    const auto free = device.free_bytes();
    const auto to_come = memory_plan_.needs.weight_bytes / (1 + others_.size()) + memory_plan_.needs.temporary_bytes;
    const auto taken = std::min(to_come, weights.placed_bytes());
    return free > to_come - taken ? (free - (to_come - taken)) / 2 : 0;
}

void ReplayEngine::reserve_device_bytes(std::size_t bytes) {
    auto limits = value_limits_;
    if (limits.device_bytes != MemoryPlan::unlimited) limits.device_bytes -= std::min(bytes, limits.device_bytes);
    device_.values().set_limits(limits);
    for (auto& other : others_) other->device.values().set_limits(limits);
}

std::string ReplayEngine::device_names() const {
    if (others_.empty()) return device_.name();
    std::string names;
    for (std::size_t i = 0; i <= others_.size(); ++i)
        names += fmt::format("{}{} ({} of {} parts)", i == 0 ? "" : ", ",
                             i == 0 ? device_.name() : others_[i - 1]->device.name(),
                             std::ranges::count(device_of_range_, i), device_of_range_.size());
    return names;
}

Value ReplayEngine::store(const std::shared_ptr<const std::vector<std::byte>>& input) {
    for (const auto& [known, value] : stored_inputs_)
        if (known == input) return value;
    constexpr std::size_t remembered = 64;
    if (stored_inputs_.size() >= remembered) stored_inputs_.erase(stored_inputs_.begin());
    stored_inputs_.emplace_back(input, (host_inputs_ ? *host_inputs_ : device_.values()).keep(*input));
    return stored_inputs_.back().second;
}

Window ReplayEngine::prepare(std::vector<Token> tokens) {
    Window window;
    for (const auto& [index, bytes] : recorder_.inputs(tokens).values) window.inputs[index] = store(bytes);
    window.tokens = std::move(tokens);
    return window;
}

std::vector<LiveState> ReplayEngine::states_at_head(std::span<const Window> windows) {
    const auto cuts = topology_.cuts();
    std::vector<LiveState> states(windows.size());
    for (std::size_t c = 0; c + 2 < cuts.size(); ++c) {
        const auto range = slice(cuts[c], cuts[c + 1]);
        for (std::size_t w = 0; w < windows.size(); ++w) {
            range->run(windows[w].inputs, states[w]);
            states[w] = range->live_out(states[w]);
        }
    }
    return states;
}

ReplayEngine::SelfCheck ReplayEngine::self_check(std::span<const Window> windows) {
    SelfCheck result;
    const auto states = states_at_head(windows);
    const int logits = topology_.graph().logits;
    {
        Decoder decoder(*model_, n_tokens_, device_.threads(),
                        memory_plan_.resident ? nullptr : page_dropper(memory_plan_.weight_bytes));
        Slice::Options options;
        options.reads = {logits};
        const auto head = slice(topology_.head_cut(), topology_.n_nodes(), options);
        std::vector<float> log_p(static_cast<std::size_t>(model_->n_vocab()));
        double positions = 0.0;
        for (std::size_t w = 0; w < windows.size(); ++w) {
            head->run(windows[w].inputs, states[w]);
            const auto replayed = values<float>(head->read(logits));
            const auto expected = decoder.decode(windows[w].tokens);
            positions += static_cast<double>(expected.size()) / static_cast<double>(log_p.size());
            result.finite = result.finite && std::ranges::all_of(expected, [](float x) { return std::isfinite(x); });
            if (std::memcmp(replayed.data(), expected.data(), expected.size_bytes()) == 0) continue;
            for (std::size_t i = 0; i < expected.size(); ++i) {
                const double difference =
                    std::fabs(static_cast<double>(replayed[i]) - static_cast<double>(expected[i]));
                // NaN counts as a deviation.
                if (!(difference <= result.largest_deviation)) result.largest_deviation = difference;
            }
            for (std::size_t i = 0; i < expected.size(); i += log_p.size()) {
                const auto n = static_cast<std::int64_t>(log_p.size());
                log_softmax_row(expected.data() + i, log_p.data(), n);
                result.kld += static_cast<double>(score_row(replayed.data() + i, log_p.data(), n, -1).kld);
            }
        }
        result.kld /= positions;
    }
    const auto again = states_at_head(windows);
    WindowScore floor;
    for (std::size_t w = 0; w < windows.size(); ++w) {
        set_reference(windows[w], states[w]);
        const auto score_again = score(windows[w], again[w]);
        floor.kld += score_again.kld;
        floor.count += score_again.count;
    }
    finish_scoring();
    result.null_floor_kld = floor.kld / floor.count;
    return result;
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
        options.tail = [this](ggml_context* context, const Slice::Clone& clone) {
            auto* logits = clone(topology_.graph().logits);
            auto* log_p = device_.is_host() ? ggml_map_custom2_inplace(context, reference_->log_p, logits,
                                                                       log_softmax_operation, GGML_N_TASKS_MAX, nullptr)
                                            : ggml_cpy(context, log_softmax_nodes(context, logits), reference_->log_p);
            return Slice::Tail{{}, {log_p}};
        };
        reference_head_ = slice(topology_.head_cut(), topology_.n_nodes(), options);
    }
    std::vector<std::int32_t> targets(window.tokens.begin() + 1, window.tokens.end());
    targets.push_back(device_.is_host() ? -1 : 0);  // nothing is predicted after the last token
    device_.wait();                                 // for those who still read the last ones
    ggml_backend_tensor_set(reference_->targets, targets.data(), 0, targets.size() * sizeof(std::int32_t));
    reference_head_->run(window.inputs, at_head);
}

void ReplayEngine::add_predictions(const Window& window, const LiveState& at_head, std::span<double> sums) {
    set_reference(window, at_head);
    device_.wait();
    const auto n_vocab = sums.size();
    std::vector<float> log_p(n_vocab * static_cast<std::size_t>(n_tokens_));
    ggml_backend_tensor_get(reference_->log_p, log_p.data(), 0, log_p.size() * sizeof(float));
    const auto first = static_cast<std::size_t>(burn_in(n_tokens_)), last = static_cast<std::size_t>(n_tokens_) - 1;
    constexpr std::int64_t chunk = 4096;
    parallel_chunks(std::ssize(sums), chunk, device_.threads(), [&](std::int64_t begin, std::int64_t end) {
        for (auto position = first; position < last; ++position)
            for (auto token = static_cast<std::size_t>(begin); token < static_cast<std::size_t>(end); ++token)
                sums[token] += static_cast<double>(std::exp(log_p[position * n_vocab + token]));
    });
}

void ReplayEngine::finish_scoring() {
    if (memory_plan_.resident) return;
    reference_head_.reset();
    plain_head_.reset();
}

std::unique_ptr<ReplayEngine::Head> ReplayEngine::make_head(const Substitutions& substitutes) {
    make_reference();
    Slice::Options options;
    options.substitutes = substitutes;
    options.tail = [this](ggml_context* context, const Slice::Clone& clone) {
        auto* logits = clone(topology_.graph().logits);
        if (device_.is_host()) {
            ggml_tensor* arguments[] = {logits, reference_->log_p, reference_->targets};
            return Slice::Tail{{},
                               {ggml_custom_4d(context, GGML_TYPE_F32, score_fields, n_tokens_, 1, 1, arguments, 3,
                                               score_operation, GGML_N_TASKS_MAX, nullptr)}};
        }
        const auto nodes = score_nodes(context, logits, reference_->log_p, reference_->targets);
        return Slice::Tail{{}, {nodes.kld, nodes.log_q, nodes.log_p, nodes.top, nodes.reference_top}};
    };
    return std::make_unique<Head>(slice(topology_.head_cut(), topology_.n_nodes(), options));
}

ReplayEngine::Head& ReplayEngine::plain_head() {
    if (!plain_head_) plain_head_ = make_head({});
    return *plain_head_;
}

WindowScore ReplayEngine::score(const Window& window, const LiveState& at_head) {
    return score(plain_head(), window, at_head);
}

WindowScore ReplayEngine::score(Head& head, const Window& window, const LiveState& at_head) {
    return finish_score(begin_score(head, window, at_head));
}

ReplayEngine::PendingScore ReplayEngine::begin_score(Head& head, const Window& window, const LiveState& at_head) {
    head.slice().run(window.inputs, at_head);
    return {head.slice().keep_tail()};
}

WindowScore ReplayEngine::finish_score(const PendingScore& pending) const {
    std::vector<PositionScore> scores(static_cast<std::size_t>(n_tokens_));
    const auto& from = pending.values;
    if (device_.is_host()) {
        const auto bytes = read(*from[0]);
        std::memcpy(scores.data(), bytes.data(), bytes.size());
    } else {
        const auto kld = values<float>(read(*from[0]));
        const auto log_q = values<float>(read(*from[1]));
        const auto log_p = values<float>(read(*from[2]));
        const auto top = values<std::int32_t>(read(*from[3]));
        const auto reference_top = values<std::int32_t>(read(*from[4]));
        for (std::size_t i = 0; i < scores.size(); ++i)
            scores[i] = {kld[i], -log_q[i], -log_p[i], top[i] == reference_top[i] ? 1.0F : 0.0F};
        scores.back().nll = scores.back().reference_nll = std::numeric_limits<float>::quiet_NaN();
    }
    return sum_scores(scores, burn_in(n_tokens_));
}

}  // namespace cerebellum
