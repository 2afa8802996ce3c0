#include "cerebellum/allocate/placement.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "cerebellum/allocate/knapsack.h"
#include "cerebellum/core/tensor_name.h"

namespace cerebellum {

namespace {

std::string escaped(std::string_view text) {
    std::string result;
    for (const char c : text) {
        if (std::string_view(R"(.[]{}()\*+?^$|)").find(c) != std::string_view::npos) result += '\\';
        result += c;
    }
    return result;
}

}  // namespace

Placement place(const std::vector<PlacedTensor>& tensors, std::uint64_t device_budget) {
    KnapsackProblem problem;
    problem.budget_bytes = device_budget;
    for (const auto& tensor : tensors) {
        auto& options = problem.groups.emplace_back();
        options.push_back({0, tensor.where == PlacedTensor::Where::host
                                  ? 0.0
                                  : static_cast<double>(tensor.bytes) * tensor.read_per_token * tensor.preference});
        if (tensor.where != PlacedTensor::Where::host) options.push_back({tensor.bytes, 0.0});
    }
    // Everything costs the same per byte, which makes proofs long and near misses worth nothing.
    const auto solution = solve_knapsack(problem, {.labels = 100'000});
    Placement result;
    result.device_bytes = solution.bytes;
    result.exact = solution.exact;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        const bool on_device = solution.choice[i] == 1;
        if (!on_device || tensors[i].where != PlacedTensor::Where::either) result.host_bytes += tensors[i].bytes;
        if (on_device || tensors[i].where == PlacedTensor::Where::host) continue;
        result.on_host.push_back(tensors[i].name);
        result.host_bytes_per_token += static_cast<double>(tensors[i].bytes) * tensors[i].read_per_token;
    }
    return result;
}

std::vector<std::string> override_patterns(const std::vector<std::string>& tensors) {
    struct Family {
        std::string rest;  // behind "blk.N."; the whole name of others
        std::vector<int> blocks;
    };
    std::vector<Family> families;
    for (const auto& name : tensors) {
        const auto block = block_of(name);
        const auto rest = block ? name.substr(name.find('.', name.find('.') + 1) + 1) : name;
        auto family = std::ranges::find_if(
            families, [&](const Family& known) { return known.rest == rest && known.blocks.empty() == !block; });
        if (family == families.end()) family = families.insert(families.end(), {rest, {}});
        if (block) family->blocks.push_back(*block);
    }
    std::vector<std::string> patterns;
    for (auto& family : families) {
        std::ranges::sort(family.blocks);
        patterns.push_back(family.blocks.empty()
                               ? fmt::format("^{}$", escaped(family.rest))
                               : fmt::format("^blk\\.({})\\.{}$", fmt::join(family.blocks, "|"), escaped(family.rest)));
    }
    return patterns;
}

}  // namespace cerebellum
