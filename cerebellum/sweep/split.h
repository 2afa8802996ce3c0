#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "cerebellum/sweep/plan.h"
#include "cerebellum/sweep/sweep_map.h"

namespace cerebellum {

/// A part of a plan that has the same figures when it is measured alone.
struct WorkItem {
    TensorPlan plan;
    double cost = 0.0;         // estimated, in any unit: replays and quantizing
    std::size_t position = 0;  // of the range that it begins in: the later, the shorter its way to the head
};

/// A tensor whose change shows in its block's output stays whole: whether it does is found out by all its types
/// together. Of others every type is an item. Tensors that cannot be measured are left out.
std::vector<WorkItem> split_plan(const SweepMap& map, std::span<const TensorPlan> plan, std::size_t windows);
/// For models that are measured through whole files: a type of a tensor is an item, and all cost the same.
std::vector<WorkItem> split_plan(std::span<const TensorPlan> plan);

/// One of several parts of a plan.
struct Shard {
    std::size_t index = 1;  // from 1
    std::size_t count = 1;
};

/// The shard's items, in the order given. Every item is in exactly one of the `count` shards, and all shards cost about
/// the same: the dearest item left goes to the shard that has least (Graham's rule: none costs more than 4/3 of what
/// the best split would leave it). Depends on the items alone, so that machines that know nothing of each other agree.
std::vector<WorkItem> items_of(const Shard& shard, std::span<const WorkItem> items);

/// What items ask for, as a plan.
std::vector<TensorPlan> plan_of(std::span<const WorkItem> items);

}  // namespace cerebellum
