#include "cerebellum/evaluate/recipe_replay.h"

#include <algorithm>
#include <map>
#include <set>

namespace cerebellum {

namespace {

ggml_type source_type(const Topology& topology, const std::string& name) {
    const auto& tensors = topology.graph().tensors;
    const auto weight = std::ranges::find_if(
        tensors, [&](const RecordedTensor& t) { return t.kind == TensorKind::weight && t.name == name; });
    return weight->type;
}

/// What a recipe changes in a range of the graph.
TypeMap changed_within(const Topology& topology, const TypeMap& recipe, int begin, int end) {
    TypeMap changed;
    for (const auto& [name, use] : topology.weights()) {
        if (!use.read_within(begin, end)) continue;
        const auto wanted = recipe.find(name);
        if (wanted != recipe.end() && wanted->second.type != source_type(topology, name)) changed.insert(*wanted);
    }
    return changed;
}

/// Bytes of a block's weights in the encodings that the recipes ask for, made when first asked for.
class QuantizedWeights {
  public:
    explicit QuantizedWeights(const Quantizer& quantize) : quantize_(quantize) {}

    Substitutions substitutes(const TypeMap& changed) {
        Substitutions result;
        for (const auto& [name, encoding] : changed) {
            auto& bytes = known_[{name, encoding}];
            if (bytes.empty()) bytes = quantize_(name, encoding);
            result[name] = {encoding.type, bytes};
        }
        return result;
    }
    void clear() { known_.clear(); }

  private:
    const Quantizer& quantize_;
    std::map<std::pair<std::string, Encoding>, std::vector<std::byte>> known_;
};

}  // namespace

std::vector<std::vector<WindowScore>> replay_recipes(ReplayEngine& engine, std::span<const Window> windows,
                                                     std::span<const TypeMap> recipes, const Quantizer& quantize,
                                                     Progress& progress) {
    const auto& topology = engine.topology();
    auto cuts = topology.cuts();
    cuts.pop_back();  // the head is scored, not replayed

    // Index 0 is the source itself, the reference.
    std::vector<TypeMap> all = {TypeMap{}};
    all.insert(all.end(), recipes.begin(), recipes.end());
    std::vector<std::vector<LiveState>> states(all.size(), std::vector<LiveState>(windows.size()));
    std::vector<std::vector<WindowScore>> scores(recipes.size());
    QuantizedWeights weights(quantize);
    progress.begin("replaying recipes", static_cast<double>(cuts.size() * all.size()));
    double done = 0.0;
    // Recipes that have not differed so far share one state, that of the first of them: same_as[r].
    std::vector<std::size_t> same_as(all.size(), 0);
    using Step = std::pair<std::size_t, TypeMap>;  // whose state before, and what is substituted
    for (std::size_t c = 0; c + 1 < cuts.size(); ++c) {
        std::map<Step, std::size_t> done_by;
        for (std::size_t r = 0; r < all.size(); ++r) {
            progress.check();
            progress.advance(++done, "blocks");
            const auto changed = changed_within(topology, all[r], cuts[c], cuts[c + 1]);
            const auto [known, is_new] = done_by.try_emplace({same_as[r], changed}, r);
            same_as[r] = known->second;
            if (!is_new) {
                states[r] = states[same_as[r]];
                continue;
            }
            Slice::Options options;
            options.substitutes = weights.substitutes(changed);
            const auto range = engine.slice(cuts[c], cuts[c + 1], options);
            for (std::size_t w = 0; w < windows.size(); ++w) {
                range->run(windows[w].inputs, states[r][w]);
                states[r][w] = range->live_out(states[r][w]);
            }
        }
        weights.clear();
    }
    std::map<Step, std::size_t> scored;
    for (std::size_t r = 0; r < recipes.size(); ++r) {
        progress.check();
        progress.advance(++done, "heads");
        const auto changed = changed_within(topology, recipes[r], topology.head_cut(), topology.n_nodes());
        const auto [known, is_new] = scored.try_emplace({same_as[r + 1], changed}, r);
        if (!is_new) {
            scores[r] = scores[known->second];
            continue;
        }
        const auto head = engine.make_head(weights.substitutes(changed));
        for (std::size_t w = 0; w < windows.size(); ++w) {
            engine.set_reference(windows[w], states[0][w]);
            scores[r].push_back(engine.score(*head, windows[w], states[r + 1][w]));
        }
    }
    engine.finish_scoring();
    progress.end();
    return scores;
}

}  // namespace cerebellum
