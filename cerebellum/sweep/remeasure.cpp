#include "cerebellum/sweep/remeasure.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "cerebellum/replay/change_probe.h"

namespace cerebellum {

namespace {

/// A state where another engine can use it.
LiveState carried_to(ReplayEngine& engine, const LiveState& state) {
    LiveState there;
    for (const auto& [root, value] : state.values) there.values[root] = engine.device().values().keep(read(*value));
    return there;
}

LiveState run(ReplayEngine& engine, Slice& slice, const Window& window, const LiveState& state) {
    slice.run(window.inputs, state);
    auto out = slice.live_out(state);
    engine.wait();
    return out;
}

Measurement blank(const Remeasure::Pair& pair, Tier tier) {
    Measurement measurement;
    measurement.tensor = pair.tensor;
    measurement.type = type_name(pair.type);
    measurement.tier = tier;
    return measurement;
}

}  // namespace

Error device_is_gone(const FigureError& reason) {
    return Error(fmt::format(
        "{}, not even of the model as it is; what was measured is kept: run the same command again when the device is "
        "there again, or use another --device and --journal",
        reason.what()));
}

Remeasure::~Remeasure() = default;

ReplayEngine& Remeasure::cpu() {
    if (!cpu_) cpu_ = engine_.on_the_cpu();
    return *cpu_;
}

const Window& Remeasure::window(const ReplayEngine& engine, std::size_t w) {
    if (&engine == &engine_) return windows_[w];
    const auto known = cpu_windows_.find(w);
    if (known != cpu_windows_.end()) return known->second;
    return cpu_windows_[w] = cpu().prepare(windows_[w].tokens);
}

Remeasure::States Remeasure::states_at(std::size_t range, const std::vector<std::size_t>& windows) {
    if (known_range_ != range) known_.clear();
    known_range_ = range;
    std::vector<std::size_t> missing;
    for (const auto w : windows)
        if (!known_.contains(w)) missing.push_back(w);
    for (const auto w : missing) known_[w] = {};
    try {
        for (std::size_t r = 0; r < range && !missing.empty(); ++r) {
            const auto slice = engine_.slice(map_.ranges()[r].begin, map_.ranges()[r].end);
            for (const auto w : missing) {
                progress_.check();
                known_[w] = run(engine_, *slice, windows_[w], known_[w]);
            }
        }
    } catch (const FigureError& error) {
        known_.clear();
        throw device_is_gone(error);
    } catch (...) {
        known_.clear();
        throw;
    }
    return known_;
}

LiveState Remeasure::at_head(std::size_t w) {
    if (w < at_head_.size()) return at_head_[w];
    const auto known = made_at_head_.find(w);
    if (known == made_at_head_.end()) made_at_head_[w] = states_at(map_.ranges().size(), {w}).at(w);
    return made_at_head_.at(w);
}

WindowScore Remeasure::score(ReplayEngine& engine, const SweepMap::Place& place, const Substitutions& changed,
                             std::size_t w, LiveState state) {
    const auto& topology = engine.topology();
    const auto substituted = [&](int begin, int end) {
        return place.use->read_within(begin, end) ? changed : Substitutions();
    };
    for (std::size_t r = place.range + 1; r < map_.ranges().size(); ++r) {
        const auto& nodes = map_.ranges()[r];
        Slice::Options options;
        options.substitutes = substituted(nodes.begin, nodes.end);
        const auto slice = engine.slice(nodes.begin, nodes.end, options);
        state = run(engine, *slice, window(engine, w), state);
        progress_.check();
    }
    const auto in_head = substituted(topology.head_cut(), topology.n_nodes());
    const auto head = in_head.empty() ? nullptr : engine.make_head(in_head);
    engine.set_reference(window(engine, w), &engine == &engine_ ? at_head(w) : carried_to(engine, at_head(w)));
    const auto score = engine.score(head ? *head : engine.plain_head(), window(engine, w), state);
    engine.wait();
    return score;
}

LiveState Remeasure::through_block(ReplayEngine& engine, const SweepMap::Place& place, const Substitutions& changed,
                                   std::size_t w, LiveState state, double& energy) {
    const auto& nodes = map_.ranges()[place.range];
    const int first = place.use->first;
    if (nodes.begin < first) state = run(engine, *engine.slice(nodes.begin, first), window(engine, w), state);
    ChangeProbe probe(engine.topology());
    Slice::Options options;
    options.substitutes = changed;
    if (place.local)
        options.tail = [&](ggml_context* context, const Slice::Clone& clone) {
            return probe.append(nodes.end, context, clone);
        };
    const auto slice = engine.slice(first, nodes.end, options);
    std::vector<Value> before;
    if (place.local) before = probe.inputs(run(engine, *engine.slice(first, nodes.end), window(engine, w), state));
    slice->run(window(engine, w).inputs, state, before);
    engine.wait();
    if (place.local) energy = probe.relative_energy(slice->keep_tail(), burn_in(engine.n_tokens()));
    state = slice->live_out(state);
    engine.wait();
    return state;
}

Remeasure::Figures Remeasure::measure(const Pair& pair, std::span<const std::byte> bytes, bool on_the_cpu) {
    const auto place = map_.place_of(pair.tensor).value();
    const bool in_body = place.range < map_.ranges().size();
    auto& engine = on_the_cpu ? cpu() : engine_;
    auto& behind = place.use->last >= (in_body ? map_.ranges()[place.range].end : 0) ? engine : engine_;
    const Substitutions changed = {{pair.tensor, {pair.type.type, bytes}}};
    const double tokens = engine.n_tokens() - 1 - burn_in(engine.n_tokens());
    std::vector<std::size_t> windows;
    for (std::size_t w = 0; w < windows_.size(); ++w)
        if (pair.fast.has(w) || pair.full.has(w)) windows.push_back(w);
    const auto states = in_body ? states_at(place.range, windows) : States();

    Figures figures{blank(pair, Tier::fast), blank(pair, Tier::full)};
    for (const auto w : windows) {
        progress_.check();
        LiveState state = in_body ? states.at(w) : at_head(w);
        if (on_the_cpu) state = carried_to(engine, state);
        double energy = 0.0;
        if (in_body) state = through_block(engine, place, changed, w, std::move(state), energy);
        for (auto* measured : {&figures.fast, &figures.full}) {
            if (!place.local || !(measured == &figures.fast ? pair.fast : pair.full).has(w)) continue;
            measured->local_energy.push_back(energy);
            measured->local_counts.push_back(tokens);
        }
        if (!pair.full.has(w)) continue;
        if (&behind != &engine) state = carried_to(behind, state);
        const auto score = this->score(behind, place, changed, w, std::move(state));
        figures.full.counts.push_back(score.count);
        figures.full.kld.push_back(score.kld);
        figures.full.delta_nll.push_back(score.nll - score.reference_nll);
        figures.full.top1_agree.push_back(score.same_top);
    }
    engine_.finish_scoring();
    return figures;
}

}  // namespace cerebellum
