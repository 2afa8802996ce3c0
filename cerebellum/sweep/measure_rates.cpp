#include "cerebellum/sweep/measure_rates.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <optional>
#include <vector>

#include "cerebellum/core/quant_type.h"
#include "cerebellum/quantize/feedback_rounder.h"
#include "cerebellum/quantize/quantize_tensor.h"

namespace cerebellum {

namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Samples of rows, the same for all types of a tensor.
class QuantizingTimer {
  public:
    QuantizingTimer(const GgufFile& source, const Imatrix& imatrix, int threads)
        : source_(source), imatrix_(imatrix), threads_(threads), rounder_(unit_moments(source), threads) {}

    /// Seconds per weight with all threads at work.
    double ggml(const TensorInfo& tensor, ggml_type type) const {
        const auto weights = weights_of(tensor);
        // The tables of codebooks are made by the first row of a type: once in a job.
        run(tensor, type, weights, 1);
        // A thread takes longer to start than to round some rows to 8 bits.
        constexpr double least_s = 2e-3;
        constexpr std::int64_t few = std::int64_t{1} << 14, many = std::int64_t{1} << 19;
        double seconds = 0.0;
        std::int64_t rows = 0;
        for (auto per_thread = few; per_thread <= many && seconds < least_s; per_thread *= 8) {
            rows = rows_of(tensor, per_thread);
            const auto start = Clock::now();
            run(tensor, type, weights, rows);
            seconds = seconds_since(start);
            if (rows == tensor.n_rows()) break;
        }
        return seconds / static_cast<double>(rows * tensor.row_length());
    }

    /// What feedback adds to that, per weight and column.
    double feedback(const TensorInfo& tensor, ggml_type type) {
        // Rows are rounded sixteen at a time; twice that lets both halves of a pair of threads have some.
        const auto rows = std::min<std::int64_t>(tensor.shape[1], std::int64_t{32} * threads_);
        const auto source = source_.data(tensor);
        const auto row_bytes = source.size() / static_cast<std::size_t>(tensor.n_rows());
        auto bytes = run(tensor, type, weights_of(tensor), rows);
        double seconds = 0.0;
        // The first time makes the metric of the moments, which all types share.
        for (int i = 0; i < 2; ++i) {
            const auto start = Clock::now();
            rounder_.improve_rows(tensor, source.first(row_bytes * static_cast<std::size_t>(rows)), type, 0, bytes);
            seconds = seconds_since(start);
        }
        return seconds / static_cast<double>(rows * tensor.row_length() * tensor.row_length());
    }

  private:
    static MomentReader unit_moments(const GgufFile& source) {
        return [&source](const std::string& name, std::int64_t) {
            const auto n = static_cast<std::size_t>(source.find(name)->row_length());
            std::vector<float> lower(n * (n + 1) / 2, 0.01f);
            for (std::size_t i = 0; i < n; ++i) lower[i * (i + 1) / 2 + i] = 1.0f;
            return lower;
        };
    }
    /// Made up where none are known: the time does not depend on them.
    std::vector<float> weights_of(const TensorInfo& tensor) const {
        const auto known = quantization_weights(&imatrix_, tensor);
        if (!known.empty()) return {known.begin(), known.end()};
        return std::vector<float>(static_cast<std::size_t>(tensor.row_length() * tensor.shape[2]), 1.0f);
    }
    std::int64_t rows_of(const TensorInfo& tensor, std::int64_t weights_per_thread) const {
        const auto wanted = weights_per_thread / tensor.row_length() * threads_;
        return std::clamp<std::int64_t>(wanted, std::min<std::int64_t>(threads_, tensor.n_rows()), tensor.n_rows());
    }
    std::vector<std::byte> run(const TensorInfo& tensor, ggml_type type, std::span<const float> weights,
                               std::int64_t rows) const {
        std::vector<std::byte> out(type_size_bytes(type, tensor.row_length(), rows));
        quantize_rows(tensor, source_.data(tensor), type, weights, 0, rows, out, threads_);
        return out;
    }

    const GgufFile& source_;
    const Imatrix& imatrix_;
    int threads_;
    FeedbackRounder rounder_;
};

/// The largest tensor that may have each encoding; of those with feedback the one of fewest columns, since the second
/// moments grow with their square.
std::map<Encoding, const TensorInfo*> samples_of(const GgufFile& source, std::span<const TensorPlan> plan) {
    std::map<Encoding, const TensorInfo*> samples;
    for (const auto& entry : plan) {
        const auto* tensor = source.find(entry.name);
        if (tensor == nullptr) continue;
        for (const auto& type : entry.types) {
            auto& best = samples[type];
            const bool better =
                best == nullptr || (type.rounding == Rounding::feedback ? tensor->row_length() < best->row_length()
                                                                        : tensor->n_rows() > best->n_rows());
            if (better) best = tensor;
        }
    }
    return samples;
}

void time_replays(ReplayEngine& engine, const Window& window, const Progress& progress, Rates& rates) {
    constexpr double most_blocks_s = 3.0, most_head_s = 2.0;
    const SweepMap map(engine.topology());
    const int head_cut = engine.topology().head_cut(), n_nodes = engine.topology().n_nodes();
    LiveState state;
    double flops = 0.0, seconds = 0.0, spent_s = 0.0;
    bool complete = true;
    for (const auto& range : map.ranges()) {
        progress.check();
        complete = spent_s < most_blocks_s;
        if (!complete) break;
        const auto slice = engine.slice(range.begin, range.end);
        // The first run brings weights to where they are needed, and a device's libraries into being: once in a job,
        // while a sweep runs each part of the graph for hundreds of variants.
        const auto first = Clock::now();
        slice->run(window.inputs, state);
        engine.wait();
        spent_s += seconds_since(first);
        const auto start = Clock::now();
        slice->run(window.inputs, state);
        engine.wait();
        seconds += seconds_since(start);
        spent_s += seconds_since(start);
        state = slice->live_out(state);
        flops += map.flops(range.begin, range.end);
    }
    if (flops > 0.0) rates.replay_s = rates.head_s = seconds / flops;
    if (!complete || 2.0 * map.cost(head_cut, n_nodes) * rates.head_s > most_head_s) return;
    engine.set_reference(window, state);
    engine.score(window, state);
    const auto start = Clock::now();
    engine.score(window, state);
    rates.head_s = seconds_since(start) / map.cost(head_cut, n_nodes);
    engine.finish_scoring();
}

}  // namespace

Rates measure_rates(ReplayEngine& engine, const Window& window, const GgufFile& source, const Imatrix& imatrix,
                    std::span<const TensorPlan> plan, int threads, const Progress& progress) {
    Rates rates;
    time_replays(engine, window, progress, rates);
    QuantizingTimer timer(source, imatrix, threads);
    std::optional<double> feedback_s;
    for (const auto& [type, tensor] : samples_of(source, plan)) {
        progress.check();
        if (type.rounding == Rounding::ggml)
            rates.quantize_s[type] = timer.ggml(*tensor, type.type);
        else if (!rates.quantize_s.contains(type.type))  // a choice of feedback alone
            rates.quantize_s[type.type] = timer.ggml(*tensor, type.type);
        if (type.rounding == Rounding::feedback && !feedback_s) feedback_s = timer.feedback(*tensor, type.type);
    }
    if (feedback_s) rates.feedback_s = *feedback_s;
    return rates;
}

}  // namespace cerebellum
