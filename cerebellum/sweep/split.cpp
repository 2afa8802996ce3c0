#include "cerebellum/sweep/split.h"

#include <algorithm>
#include <cassert>
#include <numeric>

namespace cerebellum {

namespace {

/// Quantizing a weight takes a core about as long as so many operations of a replay do, mean over all types.
constexpr double quantizing_flops = 6000.0;

/// The same for one of its types alone.
TensorPlan with_one_type(const TensorPlan& tensor, const Encoding& type) {
    auto one = tensor;
    one.types = {type};
    std::erase_if(one.anchors, [&](const Encoding& anchor) { return anchor != type; });
    return one;
}

}  // namespace

std::vector<WorkItem> split_plan(const SweepMap& map, std::span<const TensorPlan> plan, std::size_t windows) {
    std::vector<WorkItem> items;
    for (const auto& tensor : plan) {
        const auto place = map.place_of(tensor.name);
        if (!place) continue;
        const auto fast_windows = static_cast<double>(tensor.fast_windows(windows));
        const double quantizing = quantizing_flops * place->weights;
        if (!place->local) {
            for (const auto type : tensor.types)
                items.push_back(
                    {with_one_type(tensor, type), quantizing + fast_windows * map.full_cost(*place), place->range});
            continue;
        }
        const double cost =
            static_cast<double>(tensor.types.size()) * (quantizing + fast_windows * map.fast_cost(*place)) +
            static_cast<double>(tensor.anchors.size() * tensor.anchor_windows(windows)) *
                (map.full_cost(*place) - map.fast_cost(*place));
        items.push_back({tensor, cost, place->range});
    }
    return items;
}

std::vector<WorkItem> split_plan(std::span<const TensorPlan> plan) {
    std::vector<WorkItem> items;
    for (const auto& tensor : plan)
        for (const auto type : tensor.types) items.push_back({with_one_type(tensor, type), 1.0, 0});
    return items;
}

std::vector<WorkItem> items_of(const Shard& shard, std::span<const WorkItem> items) {
    assert(shard.index >= 1 && shard.index <= shard.count);
    std::vector<std::size_t> order(items.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::stable_sort(order, std::greater<>{}, [&](std::size_t i) { return items[i].cost; });
    std::vector<double> loads(shard.count, 0.0);
    std::vector<std::size_t> mine;
    for (const auto i : order) {
        const auto least = std::ranges::min_element(loads);
        *least += items[i].cost;
        if (static_cast<std::size_t>(least - loads.begin()) + 1 == shard.index) mine.push_back(i);
    }
    std::ranges::sort(mine);
    std::vector<WorkItem> result;
    for (const auto i : mine) result.push_back(items[i]);
    return result;
}

std::vector<TensorPlan> plan_of(std::span<const WorkItem> items) {
    std::vector<TensorPlan> plan;
    for (const auto& item : items) plan.push_back(item.plan);
    return plan;
}

}  // namespace cerebellum
