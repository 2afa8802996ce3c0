#include "cerebellum/sweep/second_look.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "cerebellum/core/figure_error.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/stats.h"
#include "cerebellum/sweep/figure_check.h"

namespace cerebellum {

namespace {

constexpr int most_on_the_cpu = 32;      // pairs, in their block
constexpr int cost_to_the_head = 8;      // of such that run to the head there
constexpr std::size_t check_every = 50;  // pairs
constexpr std::size_t most_disagreements = 3;
constexpr double most_lossless_kld = 1e-6;
constexpr double same_as_the_cpu = 2.0;  // factor; devices round otherwise

std::string name_of(const Remeasure::Pair& pair) {
    return fmt::format("{} as {}", pair.tensor, type_name(pair.type));
}

Measurement part_of(Measurement measured, const Extent& extent) {
    for (auto* sums : {&measured.counts, &measured.kld, &measured.delta_nll, &measured.top1_agree,
                       &measured.local_energy, &measured.local_counts}) {
        if (sums->size() > extent.end) sums->resize(extent.end);
        sums->erase(sums->begin(), sums->begin() + static_cast<std::ptrdiff_t>(std::min(extent.begin, sums->size())));
    }
    return measured;
}

double mean_of(const std::vector<double>& sums, const std::vector<double>& counts) {
    return sums.empty() ? 0.0 : clustered_mean(sums, counts).mean;
}

bool close(double a, double b) {
    return a == b || (a > 0.0 && b > 0.0 && a < same_as_the_cpu * b && b < same_as_the_cpu * a);
}

const ggml_tensor* weight_of(const Topology& topology, const std::string& name) {
    for (const auto& tensor : topology.graph().tensors)
        if (tensor.kind == TensorKind::weight && tensor.name == name) return tensor.weight;
    return nullptr;
}

}  // namespace

SecondLook::SecondLook(ReplayEngine& engine, const SweepMap& map, std::span<const Window> windows,
                       const std::vector<LiveState>& at_head, const Quantize& quantize, FigureStore& figures,
                       Progress& progress)
    : engine_(engine),
      map_(map),
      windows_(windows),
      quantize_(quantize),
      figures_(figures),
      progress_(progress),
      remeasure_(engine, map, windows, at_head, progress),
      on_the_cpu_left_(most_on_the_cpu) {}

void SecondLook::set_aside(const Remeasure::Pair& pair, std::string why) {
    progress_.detail(fmt::format("{}: {}; it is measured again", name_of(pair), why));
    items_.push_back({pair, std::move(why), false, false});
}

bool SecondLook::doubt(const Remeasure::Pair& pair, std::string why, bool repeats) {
    const auto same = [&](const Item& item) { return item.pair.tensor == pair.tensor && item.pair.type == pair.type; };
    if (std::ranges::any_of(items_, same) || settled_.contains({pair.tensor, pair.type})) return false;
    items_.push_back({pair, std::move(why), true, repeats});
    return true;
}

void SecondLook::note(const Remeasure::Pair& pair) {
    if (engine_.is_judge()) return;
    noted_.push_back(pair);
    ++since_check_;
}

bool SecondLook::compare_types(const TensorPlan& tensor, Tier tier) {
    if (engine_.is_judge()) return false;
    std::vector<TypeFigure> points;
    std::vector<Encoding> types;
    for (const auto type : tensor.types) {
        const auto known = figures_.find(tensor.name, type_name(type), tier);
        if (!known || figures_.find_unusable(tensor.name, type_name(type))) continue;
        types.push_back(type);
        points.push_back({bits_per_weight(type.type), tier == Tier::fast
                                                          ? mean_of(known->local_energy, known->local_counts)
                                                          : mean_of(known->kld, known->counts)});
    }
    bool any = false;
    for (const auto i : outliers(points)) {
        const auto name = type_name(types[i]);
        const auto fast = figures_.find(tensor.name, name, Tier::fast),
                   full = figures_.find(tensor.name, name, Tier::full);
        any |= doubt({tensor.name, types[i], {0, fast ? fast->windows() : 0}, {0, full ? full->windows() : 0}},
                     fmt::format("stands out from types of about as many bits ({} {:.3g})",
                                 tier == Tier::fast ? "change of the block's output" : "KLD", points[i].value),
                     false);
    }
    return any;
}

void SecondLook::check_device() {
    if (since_check_ < check_every || noted_.empty()) return;
    since_check_ = 0;
    random_ = random_ * 6364136223846793005ULL + 1442695040888963407ULL;  // Knuth's MMIX
    auto pair = noted_[static_cast<std::size_t>(random_ >> 33U) % noted_.size()];
    noted_.clear();
    const Extent one = {pair.fast.begin, pair.fast.begin + 1};
    const auto before = stored(pair, Tier::fast, one);
    Remeasure::Figures again;
    try {
        const auto bytes = quantize_(pair.tensor, pair.type);
        again = remeasure_.measure({pair.tensor, pair.type, one, {}}, bytes, false);
    } catch (const FigureError& error) {
        doubt(pair, error.what(), true);
        return;
    }
    remeasure_.rest();
    ++checks_;
    if (repeats(before, again.fast)) return;
    ++disagreements_;
    const auto what =
        fmt::format("{} disagrees with itself: {} changed its block's output by {:.4g}, then by {:.4g}",
                    engine_.device_names(), name_of(pair), mean_of(before.local_energy, before.local_counts),
                    mean_of(again.fast.local_energy, again.fast.local_counts));
    if (disagreements_ >= most_disagreements)
        throw Error(
            fmt::format("{}, which is the {}th time in {} checks; its figures cannot be trusted: measure into "
                        "another --journal on another --device",
                        what, disagreements_, checks_));
    progress_.warn(
        fmt::format("{}; it is measured again on the CPU. If this happens often, use another --device", what));
    doubt(pair, "does not repeat itself", true);
}

void SecondLook::resolve() {
    // What is stored anew may stand out in turn.
    while (!items_.empty()) {
        const auto items = std::exchange(items_, {});
        for (const auto& item : items) resolve(item);
    }
    remeasure_.rest();
}

bool SecondLook::may_use_the_cpu(const Remeasure::Pair& pair) {
    if (engine_.is_judge()) return false;
    const auto place = map_.place_of(pair.tensor).value();
    const bool in_body = place.range < map_.ranges().size();
    const bool to_the_head = !pair.full.empty() && in_body && place.use->last >= map_.ranges()[place.range].end;
    const int cost = to_the_head ? cost_to_the_head : 1;
    if (on_the_cpu_left_ < cost) return false;
    on_the_cpu_left_ -= cost;
    return true;
}

bool SecondLook::measure(const Item& item, std::span<const std::byte> bytes, bool on_the_cpu,
                         Remeasure::Figures& figures, std::string& why) {
    std::string wrong;
    try {
        figures = remeasure_.measure(item.pair, bytes, on_the_cpu);
        wrong = why_wrong(figures.fast);
        if (wrong.empty()) wrong = why_wrong(figures.full);
    } catch (const FigureError& error) {
        wrong = error.what();
    }
    if (wrong.empty()) return true;
    const auto where = on_the_cpu ? "on the CPU" : "measured apart";
    why += why.ends_with(wrong) ? fmt::format(", {} too", where) : fmt::format("; {}: {}", where, wrong);
    return false;
}

void SecondLook::resolve(const Item& item) {
    std::string why = item.why;
    try {
        const auto bytes = quantize_(item.pair.tensor, item.pair.type);
        if (item.is_stored) {
            settled_.emplace(item.pair.tensor, item.pair.type);
            if (!settle_doubt(item, bytes, why)) give_up(item.pair, why);
            return;
        }
        Remeasure::Figures figures;
        bool found = measure(item, bytes, false, figures, why);
        if (!found && may_use_the_cpu(item.pair)) found = measure(item, bytes, true, figures, why);
        if (!found) {
            give_up(item.pair, why);
            return;
        }
        store(std::move(figures.fast), item.pair.fast);
        store(std::move(figures.full), item.pair.full);
    } catch (const FigureError& error) {
        give_up(item.pair, error.what());
    }
}

bool SecondLook::settle_doubt(const Item& item, std::span<const std::byte> bytes, std::string& why) {
    const auto& pair = item.pair;
    const auto fast = stored(pair, Tier::fast, pair.fast), full = stored(pair, Tier::full, pair.full);
    if (!item.repeats)
        if (const auto* weight = weight_of(engine_.topology(), pair.tensor);
            weight != nullptr && is_lossless(*weight, pair.type.type, bytes) &&
            mean_of(fast.local_energy, fast.local_counts) == 0.0 && mean_of(full.kld, full.counts) < most_lossless_kld)
            return true;
    Remeasure::Figures figures;
    if (may_use_the_cpu(pair)) {
        if (!measure(item, bytes, true, figures, why)) return false;
        // Where both agree the device's stay, which go with those of other types.
        if (close(mean_of(fast.local_energy, fast.local_counts),
                  mean_of(figures.fast.local_energy, figures.fast.local_counts)) &&
            close(mean_of(full.kld, full.counts), mean_of(figures.full.kld, figures.full.counts)))
            return true;
        progress_.warn(fmt::format("{}: {}; the CPU's figures are taken", name_of(pair), item.why));
        store(std::move(figures.fast), pair.fast);
        store(std::move(figures.full), pair.full);
        return true;
    }
    if (!item.repeats) {
        why += ", and too many did for all to be measured on the CPU";
        return false;
    }
    if (!measure(item, bytes, false, figures, why)) return false;
    return repeats(fast, figures.fast);
}

Measurement SecondLook::stored(const Remeasure::Pair& pair, Tier tier, const Extent& extent) const {
    const auto known = figures_.find(pair.tensor, type_name(pair.type), tier);
    return known ? part_of(*known, extent) : Measurement{};
}

void SecondLook::store(Measurement measured, const Extent& extent) {
    if (extent.empty()) return;
    if (auto known = figures_.find(measured.tensor, measured.type, measured.tier)) {
        auto whole = part_of(*known, {0, extent.begin});
        extend(whole, measured);
        measured = std::move(whole);
    }
    figures_.record(measured);
}

void SecondLook::give_up(const Remeasure::Pair& pair, const std::string& why) {
    progress_.detail(fmt::format("{} is left out: {}", name_of(pair), why));
    figures_.record_unusable({pair.tensor, type_name(pair.type), pair.fast.empty() ? Tier::full : Tier::fast, why});
    ++unusable_;
}

void SecondLook::replace_anchors(const TensorPlan& tensor) {
    const auto place = map_.place_of(tensor.name);
    const auto is_unusable = [&](const Encoding& type) {
        return figures_.find_unusable(tensor.name, type_name(type)).has_value();
    };
    if (!place || !place->local || tensor.anchors.empty() || !std::ranges::all_of(tensor.anchors, is_unusable)) return;
    const auto in_full = [&](const Encoding& type) {
        return !is_unusable(type) && figures_.find(tensor.name, type_name(type), Tier::full);
    };
    if (std::ranges::any_of(tensor.types, in_full)) return;
    for (const auto& anchor : tensor.anchors) {
        auto candidates = tensor.types;
        std::erase_if(candidates, is_unusable);
        std::ranges::stable_sort(candidates, {}, [&](const Encoding& type) {
            return std::fabs(bits_per_weight(type.type) - bits_per_weight(anchor.type));
        });
        for (const auto& type : candidates) {
            if (!in_full(type)) {
                Item item;
                item.pair = {tensor.name, type, {}, {0, tensor.anchor_windows(windows_.size())}};
                item.why = "has no figure at the end of the model";
                resolve(item);
            }
            if (in_full(type)) break;
        }
    }
    if (std::ranges::any_of(tensor.types, in_full)) return;
    for (const auto& type : tensor.types)
        if (!is_unusable(type) && figures_.find(tensor.name, type_name(type), Tier::fast))
            give_up({tensor.name, type, {}, {}}, "has no usable figure at the end of the model to be scaled by");
}

}  // namespace cerebellum
