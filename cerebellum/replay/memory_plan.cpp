#include "cerebellum/replay/memory_plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "cerebellum/core/error.h"
#include "cerebellum/core/size.h"

namespace cerebellum {

namespace {

constexpr std::size_t mebibyte = std::size_t{1} << 20;
/// The program itself, its libraries, vocabulary, journal and text.
constexpr std::size_t program_bytes = 96 * mebibyte;
/// What travels together where memory is no matter: enough for the reference's share of the scoring to become small.
constexpr std::size_t ample_wave_bytes = 96 * mebibyte;
/// Copies of all windows' states that a sweep holds beside its variants: at the head, at a block's begin and end, at a
/// cut inside of the block, and the one being made.
constexpr std::size_t baseline_copies = 5;

std::size_t baseline_bytes(const MemoryNeeds& needs) {
    return baseline_copies * static_cast<std::size_t>(needs.n_windows) * needs.state_bytes;
}

[[noreturn]] void refuse(const char* option, std::size_t limit, std::size_t least) {
    throw Error(fmt::format("{} {} is too little for this model; it takes at least {} (less with a smaller --ctx)",
                            option, format_bytes(limit), format_bytes(least)));
}

/// Divides what is left of a limit between weights and states.
void divide(MemoryPlan& plan, std::size_t available, std::size_t& value_bytes, const MemoryNeeds& needs) {
    const auto largest_range = std::ranges::max(needs.range_bytes);
    plan.resident = needs.weight_bytes + baseline_bytes(needs) <= available;
    plan.weight_bytes = plan.resident ? needs.weight_bytes : largest_range;
    value_bytes = available - plan.weight_bytes;
}

}  // namespace

MemoryNeeds memory_needs(const Topology& topology, int n_windows) {
    MemoryNeeds needs;
    needs.n_windows = n_windows;
    const auto& graph = topology.graph();
    std::map<std::string, const RecordedTensor*> weights;
    for (const auto& tensor : graph.tensors)
        if (tensor.kind == TensorKind::weight) weights[tensor.name] = &tensor;
    const auto cuts = topology.cuts();
    for (std::size_t c = 0; c + 1 < cuts.size(); ++c) {
        std::size_t sum = 0, largest_node = 0, states = 0;
        for (const auto& [name, use] : topology.weights())
            if (use.read_within(cuts[c], cuts[c + 1])) sum += weights.at(name)->size_bytes();
        needs.range_bytes.push_back(sum);
        for (int i = cuts[c]; i < cuts[c + 1]; ++i) {
            const auto& tensor = graph.tensors[static_cast<std::size_t>(i)];
            if (tensor.view_of < 0) largest_node = std::max(largest_node, tensor.size_bytes());
            for (const int source : tensor.sources)
                if (source >= 0 &&
                    graph.tensors[static_cast<std::size_t>(graph.root(source))].kind == TensorKind::state)
                    states = std::max(states, graph.tensors[static_cast<std::size_t>(graph.root(source))].size_bytes());
        }
        // A handful of the largest temporaries live at the same time: of the head logits, probabilities and reference.
        needs.temporary_bytes = std::max(needs.temporary_bytes, 4 * largest_node + 4 * states);
        needs.state_bytes = std::max(needs.state_bytes, topology.live_bytes(cuts[c]));
    }
    for (const auto& [name, tensor] : weights) {
        needs.weight_bytes += tensor->size_bytes();
        needs.largest_weight_bytes = std::max(needs.largest_weight_bytes, tensor->size_bytes());
    }
    return needs;
}

MemoryPlan plan_memory(const MemoryNeeds& needs, const MemoryLimits& limits, bool device_is_host) {
    MemoryPlan plan;
    plan.needs = needs;
    plan.wave_bytes = ample_wave_bytes;
    if (needs.range_bytes.empty()) return plan;
    const auto largest_range = std::ranges::max(needs.range_bytes);
    // A tensor that is quantized exists as it is and in its new type, which is seldom more than half as large.
    const auto quantizing = needs.largest_weight_bytes / 2 * 3;
    const auto few_states = 4 * needs.state_bytes;
    const auto wave_of = [&](std::size_t value_bytes) {
        const auto baseline = baseline_bytes(needs);
        return std::max(value_bytes > baseline ? value_bytes - baseline : 0, few_states);
    };
    if (!device_is_host && limits.device_bytes > 0) {
        const auto fixed = needs.temporary_bytes + largest_range / 2;  // and a variant's own weights
        const auto least = fixed + largest_range + few_states;
        if (limits.device_bytes < least) refuse("--device-memory", limits.device_bytes, least);
        divide(plan, limits.device_bytes - fixed, plan.device_value_bytes, needs);
        if (!plan.resident) plan.wave_bytes = wave_of(plan.device_value_bytes);
    }
    if (limits.host_bytes > 0) {
        auto fixed = program_bytes + quantizing;
        if (device_is_host) fixed += needs.temporary_bytes;
        const auto least = fixed + few_states + (device_is_host ? largest_range : 0);
        if (limits.host_bytes < least) refuse("--memory", limits.host_bytes, least);
        if (device_is_host) {
            divide(plan, limits.host_bytes - fixed, plan.host_value_bytes, needs);
            plan.wave_bytes = plan.resident ? std::min(ample_wave_bytes, wave_of(plan.host_value_bytes))
                                            : wave_of(plan.host_value_bytes);
        } else {
            plan.host_value_bytes = limits.host_bytes - fixed;
        }
    }
    return plan;
}

std::vector<std::size_t> spread_ranges(std::span<const std::size_t> range_bytes,
                                       std::span<const std::size_t> capacities) {
    double bytes = 0.0, capacity = 0.0;
    for (const auto each : range_bytes) bytes += static_cast<double>(each);
    for (const auto each : capacities) capacity += static_cast<double>(each);
    std::vector<std::size_t> device_of(range_bytes.size(), 0);
    std::size_t device = 0;
    // Walking from the head, a range belongs to the device in whose share its middle lies.
    double behind = 0.0, share = capacity > 0.0 ? static_cast<double>(capacities[0]) / capacity : 1.0;
    for (std::size_t r = range_bytes.size(); r-- > 0;) {
        const double middle = behind + 0.5 * static_cast<double>(range_bytes[r]);
        while (device + 1 < capacities.size() && middle > share * bytes)
            share += static_cast<double>(capacities[++device]) / capacity;
        device_of[r] = device;
        behind += static_cast<double>(range_bytes[r]);
    }
    return device_of;
}

std::string describe(const MemoryPlan& plan) {
    const auto amount = [](std::size_t bytes) {
        return bytes == MemoryPlan::unlimited ? std::string("as needed") : format_bytes(bytes);
    };
    return fmt::format("weights {} ({}), states {}, {} for variants under way, temporaries about {}",
                       format_bytes(plan.needs.weight_bytes),
                       plan.resident ? "all resident" : fmt::format("streamed through {}", amount(plan.weight_bytes)),
                       amount(std::min(plan.device_value_bytes, plan.host_value_bytes)), format_bytes(plan.wave_bytes),
                       format_bytes(plan.needs.temporary_bytes));
}

}  // namespace cerebellum
