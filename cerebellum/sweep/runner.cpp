#include "cerebellum/sweep/runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <memory>
#include <utility>

#include "cerebellum/core/error.h"
#include "cerebellum/core/quant_type.h"

namespace cerebellum {

namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

using States = std::vector<LiveState>;  // one per window

/// Relative energy of the change between two contents of the live set, per token: Σ over the scored tokens of
/// ‖h′ − h‖² / ‖h‖². Normalised per token because a few sink tokens carry most of the energy in real models.
void add_local_energy(const RecordedGraph& graph, const LiveState& baseline, const LiveState& changed,
                      Measurement& measurement) {
    const auto n_tokens = static_cast<std::size_t>(graph.n_tokens);
    std::vector<double> change(n_tokens), energy(n_tokens);
    double elsewhere = 0.0;
    for (const auto& [root, before_bytes] : baseline.values) {
        const auto& tensor = graph.tensors[static_cast<std::size_t>(root)];
        const auto& after_bytes = changed.values.at(root);
        if (tensor.type != GGML_TYPE_F32 || before_bytes == after_bytes) continue;
        const auto* before = reinterpret_cast<const float*>(before_bytes->data());
        const auto* after = reinterpret_cast<const float*>(after_bytes->data());
        const auto n = before_bytes->size() / sizeof(float);
        const bool per_token = static_cast<std::size_t>(tensor.shape[1]) == n_tokens && n % n_tokens == 0;
        const auto row = per_token ? n / n_tokens : n;
        double all_change = 0.0, all_energy = 0.0;
        for (std::size_t begin = 0, token = 0; begin < n; begin += row, ++token) {
            double row_change = 0.0, row_energy = 0.0;
            for (std::size_t i = begin; i < begin + row; ++i) {
                const double difference = static_cast<double>(after[i]) - static_cast<double>(before[i]);
                row_change += difference * difference;
                row_energy += static_cast<double>(before[i]) * static_cast<double>(before[i]);
            }
            if (per_token) {
                change[token] += row_change;
                energy[token] += row_energy;
            }
            all_change += row_change;
            all_energy += row_energy;
        }
        if (!per_token && all_energy > 0.0) elsewhere += all_change / all_energy;
    }
    double sum = 0.0;
    const auto first = static_cast<std::size_t>(burn_in(graph.n_tokens));
    for (std::size_t token = first; token + 1 < n_tokens; ++token)
        sum += elsewhere + (energy[token] > 0.0 ? change[token] / energy[token] : 0.0);
    measurement.local_energy.push_back(sum);
    measurement.local_counts.push_back(static_cast<double>(n_tokens - 1 - first));
}

std::size_t size_bytes(const LiveState& state) {
    std::size_t sum = 0;
    for (const auto& [root, value] : state.values) sum += value->size();
    return sum;
}

void add_score(const WindowScore& score, Measurement& measurement) {
    if (!std::isfinite(score.kld))
        throw Error(fmt::format("the damage of {} as {} is not a finite number on this text", measurement.tensor,
                                measurement.type));
    measurement.counts.push_back(score.count);
    measurement.kld.push_back(score.kld);
    measurement.delta_nll.push_back(score.nll - score.reference_nll);
    measurement.top1_agree.push_back(score.same_top);
}

/// A variant that has been replayed as far as some cut.
struct Variant {
    Measurement measurement;
    std::vector<std::size_t> windows;          // which ones
    States states;                             // one for each of these
    std::unique_ptr<ReplayEngine::Head> head;  // where the head itself is changed; null: the source's
    std::size_t held_bytes = 0;                // memory that it keeps until it is scored
};

class Sweep {
  public:
    Sweep(ReplayEngine& engine, std::span<const Window> windows, std::span<const TensorPlan> plan,
          const Quantizer& quantize, Journal& journal, Progress& progress)
        : engine_(engine),
          topology_(engine.topology()),
          windows_(windows),
          quantize_(quantize),
          journal_(journal),
          progress_(progress) {
        for (const auto& tensor : plan) sort_in(tensor);
    }

    SweepSummary run() {
        if (work_left_ > 0.0) {
            progress_.begin("measuring", work_left_);
            prepare_baseline();
            // The head's and the embeddings' tensors first: they are few, and their figures matter at every budget.
            for (const auto& tensor : outside_) measure_outside(tensor);
            flush();
            States states(windows_.size());
            int at = 0;
            for (std::size_t i = 0; i < inside_.size(); ++i) {
                const auto& layer = topology_.layers()[i];
                if (!has_work_from(i)) break;
                advance(states, at, layer.begin);
                measure_block(layer, inside_[i], states);
                advance(states, layer.begin, layer.end);
                at = layer.end;
            }
            flush();
            progress_.end();
        }
        return summary_;
    }

  private:
    struct Work {
        const TensorPlan* plan = nullptr;
        std::vector<ggml_type> fast;
        std::vector<ggml_type> full;
        bool empty() const { return fast.empty() && full.empty(); }
        bool wants_full(ggml_type type) const { return std::ranges::find(full, type) != full.end(); }
    };

    void sort_in(const TensorPlan& plan) {
        inside_.resize(topology_.layers().size());
        const auto use = topology_.weights().find(plan.name);
        if (use == topology_.weights().end()) {
            summary_.unmeasured.push_back(plan.name);
            return;
        }
        const int span = topology_.span_of(plan.name);
        const bool inside = span >= 0 && span < static_cast<int>(inside_.size()) &&
                            use->second.last < topology_.layers()[static_cast<std::size_t>(span)].end;
        Work work;
        work.plan = &plan;
        for (const auto type : plan.types) {
            const auto wanted = [&](Tier tier) {
                const bool known = journal_.has(plan.name, type_name(type), tier);
                if (known) ++summary_.resumed;
                return !known;
            };
            if (inside && wanted(Tier::fast)) work.fast.push_back(type);
            const bool anchor = std::ranges::find(plan.anchors, type) != plan.anchors.end();
            if ((!inside || anchor) && wanted(Tier::full)) work.full.push_back(type);
        }
        if (work.empty()) return;
        work_left_ +=
            static_cast<double>(work.fast.size()) *
                cost_of(use->second.first, inside ? topology_.layers()[static_cast<std::size_t>(span)].end : 0) +
            static_cast<double>(work.full.size()) * cost_of(use->second.first, topology_.n_nodes()) /
                (inside ? static_cast<double>(plan.anchor_stride) : 1.0);
        (inside ? inside_[static_cast<std::size_t>(span)] : outside_).push_back(std::move(work));
    }

    bool has_work_from(std::size_t layer) const {
        return std::any_of(inside_.begin() + static_cast<std::ptrdiff_t>(layer), inside_.end(),
                           [](const auto& work) { return !work.empty(); });
    }

    /// Multiply-adds × 2 of the matrix products in a range of nodes, for one window.
    double flops(int begin, int end) const {
        double sum = 0.0;
        const auto& graph = topology_.graph();
        for (int i = begin; i < end; ++i) {
            const auto& node = graph.tensors[static_cast<std::size_t>(i)];
            if (node.op != GGML_OP_MUL_MAT && node.op != GGML_OP_MUL_MAT_ID) continue;
            double elements = 1.0;
            for (const auto n : node.shape) elements *= static_cast<double>(n);
            sum +=
                2.0 * elements * static_cast<double>(graph.tensors[static_cast<std::size_t>(node.sources[0])].shape[0]);
        }
        return sum;
    }
    double cost_of(int begin, int end) const { return flops(begin, std::max(begin, end)) + 1.0; }

    void account(int begin, int end, std::size_t runs, Clock::time_point start) {
        summary_.replay_flops += flops(begin, end) * static_cast<double>(runs);
        summary_.replay_s += seconds_since(start);
    }

    void done(double work, std::string_view what) {
        work_done_ += work;
        progress_.advance(work_done_, what);
        progress_.check();
    }

    void advance(States& states, int begin, int end) {
        if (begin == end) return;
        const auto start = Clock::now();
        Slice slice(topology_, engine_.device(), begin, end, {});
        for (std::size_t w = 0; w < windows_.size(); ++w) {
            slice.run(windows_[w].inputs, states[w]);
            states[w] = slice.live_out(states[w]);
        }
        account(begin, end, windows_.size(), start);
    }

    /// The source's live state at the head, which every score is made against.
    void prepare_baseline() {
        at_head_.resize(windows_.size());
        int at = 0;
        for (const auto& layer : topology_.layers()) {
            advance(at_head_, at, layer.end);
            at = layer.end;
        }
        advance(at_head_, at, topology_.head_cut());
    }

    std::vector<std::byte> quantized(const std::string& tensor, ggml_type type) {
        const auto start = Clock::now();
        auto bytes = quantize_(tensor, type);
        summary_.quantize_s += seconds_since(start);
        return bytes;
    }

    Measurement blank(const std::string& tensor, ggml_type type, Tier tier) const {
        Measurement measurement;
        measurement.tensor = tensor;
        measurement.type = type_name(type);
        measurement.tier = tier;
        return measurement;
    }

    /// A tensor that is read outside of the blocks: replay everything from its first use, head included.
    void measure_outside(const Work& work) {
        const auto& name = work.plan->name;
        const auto use = topology_.weights().at(name);
        const int head_cut = topology_.head_cut();
        for (const auto type : work.full) {
            const auto start = Clock::now();
            const auto data = quantized(name, type);
            const Substitutions substitutes = {{name, {type, data}}};
            Variant variant;
            variant.measurement = blank(name, type, Tier::full);
            variant.states = at_head_;
            const auto replay_start = Clock::now();
            if (use.first < head_cut) {
                Slice::Options options;
                options.substitutes = substitutes;
                Slice body(topology_, engine_.device(), 0, head_cut, options);
                for (std::size_t w = 0; w < windows_.size(); ++w) {
                    body.run(windows_[w].inputs, {});
                    variant.states[w] = body.live_out({});
                    variant.held_bytes += size_bytes(variant.states[w]);
                }
                account(0, head_cut, windows_.size(), replay_start);
            }
            for (std::size_t w = 0; w < windows_.size(); ++w) variant.windows.push_back(w);
            if (use.last >= head_cut) {
                variant.head = engine_.make_head(substitutes);
                variant.held_bytes += data.size();
            }
            variant.measurement.wall_s = seconds_since(start);
            scored_.push_back(std::move(variant));
            done(cost_of(use.first, topology_.n_nodes()), name);
            flush_when_full();
        }
    }

    void measure_block(const LayerSpan& layer, const std::vector<Work>& block, const States& at_begin) {
        if (block.empty()) return;
        // Every tensor is replayed from its own first use, with the baseline's live state there.
        std::map<int, std::vector<const Work*>> by_cut;
        for (const auto& work : block) by_cut[topology_.weights().at(work.plan->name).first].push_back(&work);
        std::map<int, States> at_cut;
        States states = at_begin;
        int at = layer.begin;
        for (const auto& [cut, works] : by_cut) {
            advance(states, at, cut);
            at_cut[cut] = states;
            at = cut;
        }
        advance(states, at, layer.end);
        const States& baseline_end = states;
        std::vector<const Work*> hidden;  // whose change reaches the head by another way than the block's output

        for (const auto& [cut, works] : by_cut) {
            for (const auto* work : works) {
                auto types = work->fast;
                for (const auto type : work->full)
                    if (std::ranges::find(types, type) == types.end()) types.push_back(type);
                bool shows = false;
                for (const auto type : types)
                    shows |= measure_local(layer, *work, type, cut, at_cut.at(cut), baseline_end);
                if (!types.empty() && !shows) hidden.push_back(work);
            }
            at_cut.erase(cut);
        }
        finish_variants(layer);
        for (const auto* work : hidden) {
            Work in_full = *work;
            in_full.full = in_full.plan->types;
            measure_outside(in_full);
        }
    }

    /// Returns whether the change shows at the end of the block.
    bool measure_local(const LayerSpan& layer, const Work& work, ggml_type type, int cut, const States& at_cut,
                       const States& baseline_end) {
        const auto start = Clock::now();
        const auto& name = work.plan->name;
        const auto data = quantized(name, type);
        const auto replay_start = Clock::now();
        Slice::Options options;
        options.substitutes = {{name, {type, data}}};
        Slice slice(topology_, engine_.device(), cut, layer.end, options);
        Measurement fast = blank(name, type, Tier::fast);
        Variant variant;
        variant.measurement = blank(name, type, Tier::full);
        for (std::size_t w = 0; w < windows_.size(); ++w) {
            slice.run(windows_[w].inputs, at_cut[w]);
            auto changed = slice.live_out(at_cut[w]);
            add_local_energy(topology_.graph(), baseline_end[w], changed, fast);
            if (!work.wants_full(type) || w % work.plan->anchor_stride != 0) continue;
            variant.measurement.local_energy.push_back(fast.local_energy.back());
            variant.measurement.local_counts.push_back(fast.local_counts.back());
            variant.windows.push_back(w);
            variant.states.push_back(std::move(changed));
        }
        account(cut, layer.end, windows_.size(), replay_start);
        fast.wall_s = variant.measurement.wall_s = seconds_since(start);
        if (std::ranges::find(work.fast, type) != work.fast.end()) {
            journal_.record(fast);
            ++summary_.fast_measured;
        }
        done(cost_of(cut, layer.end), name);
        if (work.wants_full(type)) pending_.push_back(std::move(variant));
        return std::ranges::max(fast.local_energy) > 0.0;
    }

    /// Carries the block's anchors from the block's end to the head, all through one graph.
    void finish_variants(const LayerSpan& layer) {
        if (pending_.empty()) return;
        const int head_cut = topology_.head_cut();
        std::unique_ptr<Slice> suffix;
        if (layer.end < head_cut)
            suffix = std::make_unique<Slice>(topology_, engine_.device(), layer.end, head_cut, Slice::Options{});
        for (auto& variant : pending_) {
            const auto start = Clock::now();
            if (suffix) {
                for (std::size_t i = 0; i < variant.windows.size(); ++i) {
                    suffix->run(windows_[variant.windows[i]].inputs, variant.states[i]);
                    variant.states[i] = suffix->live_out(variant.states[i]);
                }
                account(layer.end, head_cut, variant.windows.size(), start);
            }
            variant.measurement.wall_s += seconds_since(start);
            for (const auto& state : variant.states) variant.held_bytes += size_bytes(state);
            scored_.push_back(std::move(variant));
            done(cost_of(layer.end, topology_.n_nodes()) * static_cast<double>(scored_.back().windows.size()) /
                     static_cast<double>(windows_.size()),
                 scored_.back().measurement.tensor);
        }
        pending_.clear();
        flush_when_full();
    }

    /// Scoring many variants against one computation of the reference's logits saves most of the reference's cost.
    void flush_when_full() {
        std::size_t bytes = 0;
        for (const auto& variant : scored_) bytes += variant.held_bytes;
        constexpr std::size_t wave_variants = 24;
        constexpr std::size_t wave_bytes = std::size_t{96} << 20;
        if (scored_.size() >= wave_variants || bytes >= wave_bytes) flush();
    }

    void flush() {
        if (scored_.empty()) return;
        const auto start = Clock::now();
        std::size_t heads = 0;
        for (std::size_t w = 0; w < windows_.size(); ++w) {
            bool referenced = false;
            for (auto& variant : scored_) {
                const auto found = std::ranges::find(variant.windows, w);
                if (found == variant.windows.end()) continue;
                progress_.check();
                if (!std::exchange(referenced, true)) {
                    engine_.set_reference(windows_[w], at_head_[w]);
                    ++heads;
                }
                const auto& state = variant.states[static_cast<std::size_t>(found - variant.windows.begin())];
                add_score(
                    variant.head ? engine_.score(*variant.head, windows_[w], state) : engine_.score(windows_[w], state),
                    variant.measurement);
                ++heads;
            }
        }
        const double seconds = seconds_since(start) / static_cast<double>(scored_.size());
        for (auto& variant : scored_) {
            variant.measurement.wall_s += seconds;
            journal_.record(variant.measurement);
            ++summary_.full_measured;
        }
        account(topology_.head_cut(), topology_.n_nodes(), heads, start);
        scored_.clear();
    }

    ReplayEngine& engine_;
    const Topology& topology_;
    std::span<const Window> windows_;
    const Quantizer& quantize_;
    Journal& journal_;
    Progress& progress_;
    std::vector<std::vector<Work>> inside_;  // by block
    std::vector<Work> outside_;
    States at_head_;
    std::vector<Variant> pending_;  // at the end of the block at hand
    std::vector<Variant> scored_;   // at the head, waiting for their score
    double work_left_ = 0.0;
    double work_done_ = 0.0;
    SweepSummary summary_;
};

}  // namespace

SweepSummary run_sweep(ReplayEngine& engine, std::span<const Window> windows, std::span<const TensorPlan> plan,
                       const Quantizer& quantize, Journal& journal, Progress& progress) {
    return Sweep(engine, windows, plan, quantize, journal, progress).run();
}

}  // namespace cerebellum
