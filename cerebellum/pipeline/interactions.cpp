#include "cerebellum/pipeline/interactions.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/pipeline/allocation.h"
#include "cerebellum/pipeline/mix_scores.h"
#include "cerebellum/pipeline/whole_prediction.h"

namespace cerebellum {

namespace {

/// A tensor and the type it is changed to.
struct Change {
    std::string tensor;
    Encoding type;
    int layer = -1;
    double damage_per_byte = 0.0;  // predicted, of those that the change saves
};

/// N in "blk.N.", or −1.
int layer_of(const std::string& name) {
    if (!name.starts_with("blk.")) return -1;
    const auto digits = name.find_first_not_of("0123456789", 4);
    return digits == 4 || digits == std::string::npos || name[digits] != '.' ? -1 : std::stoi(name.substr(4));
}

std::vector<Change> choose_changes(const GgufFile& source, const AllocationProblem& problem, double bits) {
    std::vector<Change> changes;
    for (const auto& tensor : problem.tensors) {
        const auto source_bytes = tensor_bytes(*source.find(tensor.name), source.find(tensor.name)->type);
        const TypeChoice* nearest = nullptr;
        const auto distance = [&](const TypeChoice& choice) {
            return std::fabs(bits_per_weight(choice.type.type) - bits);
        };
        for (const auto& choice : tensor.choices)
            if (choice.bytes < source_bytes && (nearest == nullptr || distance(choice) < distance(*nearest)))
                nearest = &choice;
        if (nearest == nullptr) continue;
        changes.push_back({tensor.name, nearest->type, layer_of(tensor.name),
                           nearest->cost / static_cast<double>(source_bytes - nearest->bytes)});
    }
    return changes;
}

struct Group {
    std::string kind;
    std::string name;
    std::vector<const Change*> members;
};

std::string short_name(const std::string& tensor) {
    const auto end = tensor.ends_with(".weight") ? tensor.size() - 7 : tensor.size();
    const auto begin = tensor.starts_with("blk.") ? tensor.find('.', 4) + 1 : 0;
    return tensor.substr(begin, end - begin);
}

std::string pair_name(int layer, const std::string& a, const std::string& b) {
    return fmt::format("blk.{}: {} + {}", layer, short_name(a), short_name(b));
}
std::string layer_name(int layer) {
    return fmt::format("blk.{}", layer);
}
std::string ladder_name(std::size_t n) {
    return fmt::format("{} most demotable", n);
}

/// `n` of them, evenly spread.
std::vector<int> spread_out(const std::vector<int>& layers, int n) {
    std::vector<int> chosen;
    const auto count = std::min(std::ssize(layers), static_cast<std::ptrdiff_t>(n));
    for (std::ptrdiff_t i = 0; i < count; ++i)
        chosen.push_back(layers[static_cast<std::size_t>((2 * i + 1) * std::ssize(layers) / (2 * count))]);
    return chosen;
}

std::vector<Group> make_groups(const std::vector<Change>& changes, const InteractionOptions& options) {
    std::map<int, std::vector<const Change*>> by_layer;
    for (const auto& change : changes)
        if (change.layer >= 0) by_layer[change.layer].push_back(&change);
    std::vector<int> layers;
    for (const auto& [layer, members] : by_layer) layers.push_back(layer);
    std::vector<Group> groups;
    if (options.pairs)
        for (const int layer : spread_out(layers, options.pair_layers)) {
            const auto& members = by_layer[layer];
            for (std::size_t a = 0; a < members.size(); ++a)
                for (std::size_t b = a + 1; b < members.size(); ++b)
                    groups.push_back(
                        {"pair", pair_name(layer, members[a]->tensor, members[b]->tensor), {members[a], members[b]}});
        }
    if (options.layers)
        for (const auto& [layer, members] : by_layer)
            if (members.size() > 1) groups.push_back({"layer", layer_name(layer), members});
    if (options.ladders) {
        std::vector<const Change*> order;
        for (const auto& change : changes) order.push_back(&change);
        std::ranges::stable_sort(order, {}, &Change::damage_per_byte);
        for (std::size_t k = 2; !order.empty(); k *= 2) {
            const auto n = std::min(k, order.size());
            groups.push_back(
                {"ladder", ladder_name(n), {order.begin(), order.begin() + static_cast<std::ptrdiff_t>(n)}});
            if (n == order.size()) break;
        }
    }
    return groups;
}

/// Figures of several changes together and of each alone, the windows of all the same.
void compare(Interaction& row, const MixMeasurement& together, const std::vector<std::vector<double>>& parts) {
    row.whole = clustered_mean(together.kld, together.counts);
    row.ratio = interaction_ratio(together.kld, parts);
    row.parts = 0.0;
    for (const auto& part : parts) row.parts += clustered_mean(part, together.counts).mean;
}

/// KLD per window of each change alone. Where the journal has a figure from all windows it is taken, else the change is
/// measured as a mix of one.
std::map<std::string, std::vector<double>> measure_parts(Session& session, const std::vector<Group>& groups,
                                                         Progress& progress) {
    const auto n_windows = session.measured_windows().size();
    std::map<std::string, std::vector<double>> parts;
    std::map<std::string, Encoding> missing;
    for (const auto& group : groups)
        for (const auto* change : group.members) missing[change->tensor] = change->type;
    for (const auto& m : session.journal().measurements()) {
        const auto wanted = missing.find(m.tensor);
        if (wanted == missing.end() || m.type != type_name(wanted->second) || m.tier != Tier::full) continue;
        if (m.kld.size() != n_windows) continue;
        parts[m.tensor] = m.kld;
        missing.erase(wanted);
    }
    std::vector<TypeMap> singles;
    for (const auto& [tensor, type] : missing) singles.push_back({{tensor, type}});
    const auto measured = measure_mixes(session, singles, TextPart::measured, "interaction", progress);
    for (std::size_t i = 0; i < singles.size(); ++i)
        if (is_usable(measured[i])) parts[singles[i].begin()->first] = measured[i].kld;
    return parts;
}

std::vector<Interaction> measure_groups(Session& session, const std::vector<Group>& groups, Progress& progress) {
    const auto alone = measure_parts(session, groups, progress);
    std::vector<Interaction> result;
    std::vector<TypeMap> mixes;
    for (const auto& group : groups) {
        auto& row = result.emplace_back();
        row.kind = group.kind;
        row.name = group.name;
        for (const auto* change : group.members) row.types[change->tensor] = change->type;
        mixes.push_back(row.types);
    }
    const auto measured = measure_mixes(session, mixes, TextPart::measured, "interaction", progress);
    std::vector<Interaction> usable;
    for (std::size_t i = 0; i < groups.size(); ++i) {
        std::vector<std::vector<double>> parts;
        for (const auto* change : groups[i].members)
            if (const auto part = alone.find(change->tensor); part != alone.end()) parts.push_back(part->second);
        if (parts.size() < groups[i].members.size() || !is_usable(measured[i])) continue;
        compare(result[i], measured[i], parts);
        usable.push_back(std::move(result[i]));
    }
    return usable;
}

}  // namespace

InteractionResult measure_interactions(Session& session, const InteractionOptions& options, Progress& progress) {
    session.measure();
    const auto& source = session.source();
    const auto imatrix_file = imatrix_info(session.imatrix(), session.imatrix_name());
    const auto problem =
        make_problem(source, session.journal(), imatrix_file, {Objective::kld, {}, session.rounding()});
    InteractionResult result;
    auto changes = choose_changes(source, problem, options.bits);
    std::set<std::string> planned;
    for (const auto& tensor : session.plan()) planned.insert(tensor.name);
    std::erase_if(changes, [&](const Change& change) { return !planned.contains(change.tensor); });
    result.interactions = measure_groups(session, make_groups(changes, options), progress);
    if (!options.recipes) return result;
    std::vector<std::uint64_t> budgets;
    for (const auto& size : options.sizes) budgets.push_back(size.bytes(source.n_weights()));
    if (budgets.empty()) budgets = spread_budgets(problem, source.n_weights());
    for (const auto& mix : measure_recipes(session, problem, budgets, progress)) {
        auto& row = result.recipes.emplace_back();
        row.file_bytes = predicted_file_bytes(source, mix.types, imatrix_file);
        row.bits_per_weight = 8.0 * static_cast<double>(row.file_bytes) / static_cast<double>(source.n_weights());
        row.sum = predicted_kld(problem, mix.types).value_or(std::nan(""));
        row.whole = clustered_mean(mix.kld, mix.counts);
        row.ratio = row.whole.mean / row.sum;
    }
    return result;
}

std::vector<Interaction> stored_interactions(const Journal& journal) {
    const auto alone = [&](const std::string& tensor, const Encoding& type, std::size_t windows) {
        if (const auto row = journal.find(tensor, type_name(type), Tier::full); row && row->kld.size() == windows)
            return row->kld;
        const auto mix = journal.find_mix("measured", {{tensor, type}});
        return mix && mix->kld.size() == windows ? mix->kld : std::vector<double>();
    };
    std::vector<Interaction> result;
    for (const auto& mix : journal.mixes("measured")) {
        if (mix.kind != "interaction" || mix.types.size() < 2) continue;
        std::vector<std::vector<double>> parts;
        std::set<int> layers;
        for (const auto& [tensor, type] : mix.types) {
            parts.push_back(alone(tensor, type, mix.kld.size()));
            layers.insert(layer_of(tensor));
        }
        if (std::ranges::any_of(parts, [](const auto& part) { return part.empty(); })) continue;
        auto& row = result.emplace_back();
        row.types = mix.types;
        const int layer = *layers.begin();
        const bool in_one = layers.size() == 1 && layer >= 0;
        row.kind = !in_one ? "ladder" : mix.types.size() == 2 ? "pair" : "layer";
        row.name = !in_one              ? ladder_name(mix.types.size())
                   : row.kind == "pair" ? pair_name(layer, mix.types.begin()->first, mix.types.rbegin()->first)
                                        : layer_name(layer);
        compare(row, mix, parts);
    }
    return result;
}

nlohmann::json to_json(const InteractionResult& result) {
    auto interactions = nlohmann::json::array(), recipes = nlohmann::json::array();
    for (const auto& row : result.interactions) {
        nlohmann::json types = nlohmann::json::object();
        for (const auto& [tensor, type] : row.types) types[tensor] = type_name(type);
        interactions.push_back({{"kind", row.kind},
                                {"name", row.name},
                                {"types", types},
                                {"kld", row.whole},
                                {"sum_of_parts_kld", row.parts},
                                {"ratio", row.ratio}});
    }
    for (const auto& row : result.recipes)
        recipes.push_back({{"bpw", row.bits_per_weight},
                           {"bytes", row.file_bytes},
                           {"sum_kld", row.sum},
                           {"kld", row.whole},
                           {"ratio", row.ratio}});
    return {{"interactions", interactions}, {"recipes", recipes}};
}

}  // namespace cerebellum
