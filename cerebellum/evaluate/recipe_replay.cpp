#include "cerebellum/evaluate/recipe_replay.h"

#include <algorithm>
#include <map>
#include <utility>

namespace cerebellum {

namespace {

ggml_type source_type(const Topology& topology, const std::string& name) {
    const auto& tensors = topology.graph().tensors;
    return std::ranges::find_if(tensors,
                                [&](const RecordedTensor& t) { return t.kind == TensorKind::weight && t.name == name; })
        ->type;
}

/// What a recipe changes of the weights that a range of nodes reads.
TypeMap changes_within(const Topology& topology, const TypeMap& recipe, int begin, int end) {
    TypeMap changes;
    for (const auto& [name, use] : topology.weights()) {
        if (!use.read_within(begin, end)) continue;
        const auto wanted = recipe.find(name);
        if (wanted != recipe.end() && wanted->second.type != source_type(topology, name)) changes.insert(*wanted);
    }
    return changes;
}

/// Bytes of the weights of a range in the types that several steps ask for: made when first asked for, gone when no
/// step that is still to come wants them.
class QuantizedWeights {
  public:
    QuantizedWeights(const Quantizer& quantize, std::span<const TypeMap> steps) : quantize_(quantize) {
        for (const auto& step : steps)
            for (const auto& change : step) ++wanted_[change].first;
    }

    Substitutions substitutes(const TypeMap& step) {
        Substitutions result;
        for (const auto& change : step) {
            auto& bytes = wanted_.at(change).second;
            if (bytes.empty()) bytes = quantize_(change.first, change.second);
            result[change.first] = {change.second.type, bytes};
        }
        return result;
    }
    /// The step's substitutes are not used any more.
    void finish(const TypeMap& step) {
        for (const auto& change : step)
            if (const auto entry = wanted_.find(change); --entry->second.first == 0) wanted_.erase(entry);
    }

  private:
    const Quantizer& quantize_;
    std::map<TypeMap::value_type, std::pair<int, std::vector<std::byte>>> wanted_;
};

/// What several recipes do to a range, each distinct thing once: what is changed, from which states on.
struct Steps {
    std::vector<TypeMap> changes;                   // of each step
    std::vector<std::vector<std::size_t>> recipes;  // that take it; they have come to the same states

    /// In the order of their changes, so that the same weights are wanted at about the same time. Recipes with equal
    /// `same_as` have the same states.
    Steps(const Topology& topology, std::span<const TypeMap> all, std::span<const std::size_t> same_as, int begin,
          int end) {
        std::map<std::pair<TypeMap, std::size_t>, std::vector<std::size_t>> found;
        for (std::size_t r = 0; r < all.size(); ++r)
            found[{changes_within(topology, all[r], begin, end), same_as[r]}].push_back(r);
        for (auto& [step, takers] : found) {
            changes.push_back(step.first);
            recipes.push_back(std::move(takers));
        }
    }
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
    progress.begin("replaying recipes", static_cast<double>(cuts.size() * all.size()));
    double done = 0.0;
    // Recipes that have not differed so far share one state, that of the first of them: same_as[r].
    std::vector<std::size_t> same_as(all.size(), 0);
    for (std::size_t c = 0; c + 1 < cuts.size(); ++c) {
        const Steps steps(topology, all, same_as, cuts[c], cuts[c + 1]);
        QuantizedWeights weights(quantize, steps.changes);
        for (std::size_t s = 0; s < steps.changes.size(); ++s) {
            progress.check();
            auto& state = states[steps.recipes[s].front()];
            {
                Slice::Options options;
                options.substitutes = weights.substitutes(steps.changes[s]);
                const auto range = engine.slice(cuts[c], cuts[c + 1], options);
                for (std::size_t w = 0; w < windows.size(); ++w) {
                    range->run(windows[w].inputs, state[w]);
                    state[w] = range->live_out(state[w]);
                }
            }
            weights.finish(steps.changes[s]);
            for (const auto r : steps.recipes[s]) {
                progress.advance(++done, "blocks");
                same_as[r] = steps.recipes[s].front();
                if (r != same_as[r]) states[r] = state;
            }
        }
    }
    const Steps steps(topology, recipes, std::span(same_as).subspan(1), topology.head_cut(), topology.n_nodes());
    QuantizedWeights weights(quantize, steps.changes);
    for (std::size_t s = 0; s < steps.changes.size(); ++s) {
        progress.check();
        const auto first = steps.recipes[s].front();
        {
            const auto head = engine.make_head(weights.substitutes(steps.changes[s]));
            for (std::size_t w = 0; w < windows.size(); ++w) {
                engine.set_reference(windows[w], states[0][w]);
                scores[first].push_back(engine.score(*head, windows[w], states[first + 1][w]));
            }
        }
        weights.finish(steps.changes[s]);
        for (const auto r : steps.recipes[s]) {
            progress.advance(++done, "heads");
            if (r != first) scores[r] = scores[first];
        }
    }
    engine.finish_scoring();
    progress.end();
    return scores;
}

}  // namespace cerebellum
