#include "cerebellum/pipeline/goal.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>

#include "cerebellum/allocate/placement.h"
#include "cerebellum/build/build_gguf.h"
#include "cerebellum/build/hollow_gguf.h"
#include "cerebellum/build/source_identity.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/leftovers.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/tensor_name.h"
#include "cerebellum/gguf/imatrix_digest.h"
#include "cerebellum/journal/digest.h"
#include "cerebellum/pipeline/allocation.h"
#include "cerebellum/pipeline/session.h"
#include "cerebellum/pipeline/whole_prediction.h"
#include "cerebellum/version.h"

namespace cerebellum {

namespace {

/// Constraints first, so that what they make impossible is said in their words.
Allocation allocate_within(const AllocationProblem& problem, const Constraints& constraints,
                           std::uint64_t budget_bytes) {
    return allocate(constrained(problem, constraints, budget_bytes), budget_bytes);
}

Allocation allocate_smallest(const AllocationProblem& problem, const Constraints& constraints) {
    auto smallest = constrained_for_any_size(problem, constraints);
    smallest.max_types = 0;
    return allocate(smallest, smallest_file_bytes(smallest));
}

/// llama.cpp's account of a file with these types that is not built.
ServingMemory memory_of(const GgufFile& source, const TypeMap& types, const ServingSetup& setup) {
    const ScratchFile hollow(std::filesystem::temp_directory_path() / fmt::format("cerebellum-{}.gguf", ::getpid()));
    const Leftover leftover(hollow.path());
    write_hollow_gguf(source, types, hollow.path());
    return serving_memory(hollow.path(), setup);
}

std::string describe(const MemoryUse& use) {
    return fmt::format("{} = weights {} + cache {} + compute buffers {}", format_bytes(use.total()),
                       format_bytes(use.model_bytes), format_bytes(use.context_bytes), format_bytes(use.compute_bytes));
}

std::string describe(const ServingSetup& setup) {
    return fmt::format("{} ({} tokens of context, {} {}, cache in {})", setup.device, setup.context, setup.parallel,
                       setup.parallel == 1 ? "sequence" : "sequences", type_name(setup.cache_type));
}

/// Finds the largest file whose run fits: its size is corrected by what llama.cpp's account says is left or too much.
SolvedGoal fit_memory(const GgufFile& source, const AllocationProblem& problem, const AllocationRequest& request) {
    const auto& goal = request.goal;
    SolvedGoal best;
    ServingMemory best_memory;
    const auto smallest = allocate_smallest(problem, request.constraints);
    const auto least = memory_of(source, smallest.types, goal.serving);
    if (least.device.total() > goal.device_bytes)
        throw Error(fmt::format(
            "{} of memory are too little for {}: even the smallest file, {} bytes, takes {}; "
            "allow more, shorten --serve-ctx or store the cache in fewer bits (--kv)",
            format_bytes(goal.device_bytes), describe(goal.serving), smallest.file_bytes, describe(least.device)));
    std::uint64_t budget = smallest.file_bytes + (goal.device_bytes - least.device.total());
    constexpr int most_tries = 8;
    constexpr double close_enough = 0.9995;
    for (int i = 0; i < most_tries; ++i) {
        auto allocation = allocate_within(problem, request.constraints, budget);
        const auto memory = memory_of(source, allocation.types, goal.serving);
        const auto used = memory.device.total();
        if (used > goal.device_bytes) {
            const auto excess = used - goal.device_bytes, from = std::min(budget, allocation.file_bytes);
            budget = std::max(smallest.file_bytes, from - std::min(from, excess));
            continue;
        }
        const auto left = goal.device_bytes - used;
        const bool all_it_can_use = allocation.file_bytes + left < budget;
        if (best.budget_bytes == 0 || allocation.cost < best.allocation.cost) {
            best.allocation = std::move(allocation);
            best.budget_bytes = budget;
            best_memory = memory;
        }
        if (all_it_can_use || static_cast<double>(used) >= close_enough * static_cast<double>(goal.device_bytes)) break;
        budget = std::max(budget, best.allocation.file_bytes + left);
    }
    if (best.budget_bytes == 0)
        throw Error(fmt::format("no size was found that fits into {} of {}; allow a little more",
                                format_bytes(goal.device_bytes), describe(goal.serving)));
    best.remarks.push_back(fmt::format(
        "llama.cpp's account of {}: {} of {}{}", describe(goal.serving), describe(best_memory.device),
        format_bytes(goal.device_bytes),
        best_memory.host.total() > 0 ? fmt::format("; in host memory {}", describe(best_memory.host)) : std::string()));
    if (goal.serving.device == "CPU")
        best.remarks.emplace_back(
            "counted as for the CPU: on a GPU the embedding stays in host memory and a little more fits (name "
            "the GPU with --serve-on)");
    best.provenance["memory"] = best.remarks.front();
    return best;
}

/// What share of an expert tensor one token reads.
double read_share(const GgufFile& source, const std::string& tensor) {
    const auto role = role_of(tensor);
    const bool of_experts =
        role.ends_with("_exps") || (role.starts_with("ffn_") && role.find('.') != std::string::npos);
    if (!of_experts) return 1.0;
    const auto used = source.uint_value(source.architecture() + ".expert_used_count");
    const auto all = source.uint_value(source.architecture() + ".expert_count");
    if (!used || !all || *all == 0) return 1.0;
    return static_cast<double>(*used) / static_cast<double>(*all);
}

/// Every tensor of a file with these types, and where llama.cpp can have it.
std::vector<PlacedTensor> tensors_to_place(const GgufFile& source, const TypeMap& types) {
    const bool tied = source.find("output.weight") == nullptr;
    int n_blocks = 1;
    for (const auto& tensor : source.tensors()) n_blocks = std::max(n_blocks, block_of(tensor.name).value_or(0) + 1);
    std::vector<PlacedTensor> placed;
    for (const auto& tensor : source.tensors()) {
        const auto named = types.find(tensor.name);
        PlacedTensor next{tensor.name, tensor_bytes(tensor, named == types.end() ? tensor.type : named->second.type),
                          read_share(source, tensor.name), PlacedTensor::Where::either};
        // llama.cpp keeps the tensors of its input layer in host memory; a tied embedding it loads a second time.
        if (!block_of(tensor.name) && role_of(tensor.name).find("embd") != std::string::npos &&
            !tensor.name.starts_with("output"))
            next.where = tied && tensor.name == "token_embd.weight" ? PlacedTensor::Where::host_and_either
                                                                    : PlacedTensor::Where::host;
        // A norm on the other side would cut the graph for nothing; blocks go to the host from the first one on, so
        // that there are few cuts.
        constexpr double small = 1000.0, later = 0.05;
        if (tensor.n_rows() == 1) next.preference = small;
        if (const auto block = block_of(tensor.name)) next.preference *= 1.0 + later * *block / n_blocks;
        placed.push_back(std::move(next));
    }
    return placed;
}

/// Weights of at most so many bytes on the device and so many beside it: allocates both together, then fills the device
/// with what is read most. Where the parts do not come out even, both budgets shrink by what is too much.
SolvedGoal split(const GgufFile& source, const AllocationProblem& problem, const AllocationRequest& request) {
    const auto& goal = request.goal;
    std::uint64_t header_bytes = problem.fixed_bytes;
    for (const auto& tensor : source.tensors())
        if (std::ranges::find(problem.tensors, tensor.name, &TensorChoices::name) == problem.tensors.end())
            header_bytes -= tensor_bytes(tensor, tensor.type);
    const bool accountable = goal.serving.device != "CPU";
    std::uint64_t device = goal.device_bytes, together = goal.device_bytes + goal.host_bytes;
    constexpr int most_tries = 20;
    for (int i = 0; i < most_tries; ++i) {
        SolvedGoal solved;
        solved.budget_bytes = together + header_bytes;
        solved.allocation = allocate_within(problem, request.constraints, solved.budget_bytes);
        const auto placement = place(tensors_to_place(source, solved.allocation.types), device);
        solved.on_host = override_patterns(placement.on_host);
        std::uint64_t on_device = placement.device_bytes, on_host = placement.host_bytes;
        if (accountable) {
            auto setup = goal.serving;
            setup.on_host = solved.on_host;
            const auto memory = memory_of(source, solved.allocation.types, setup);
            on_device = memory.device.model_bytes;
            on_host = memory.host.model_bytes;
        }
        const auto too_much = [](std::uint64_t used, std::uint64_t budget) {
            return used > budget ? used - budget : 0;
        };
        const auto device_excess = too_much(on_device, goal.device_bytes);
        const auto host_excess = too_much(on_host, goal.host_bytes);
        if (device_excess == 0 && host_excess == 0) {
            solved.remarks.push_back(
                fmt::format("weights: {} on the device, {} in host memory, of which {} are read for a token; {}",
                            format_bytes(on_device), format_bytes(on_host),
                            format_bytes(static_cast<std::uint64_t>(placement.host_bytes_per_token)),
                            accountable ? "sizes as llama.cpp accounts for them on " + goal.serving.device
                                        : "sizes as in the file; cache and compute buffers come on top"));
            solved.remarks.push_back("run it with: " + override_flags(solved.on_host));
            solved.provenance["override_tensor"] = override_flags(solved.on_host);
            return solved;
        }
        device -= std::min(device, device_excess);
        if (host_excess >= together) break;
        together -= host_excess;
    }
    throw Error(fmt::format("no choice of types fits into {} on the device and {} beside it; allow more of either",
                            format_bytes(goal.device_bytes), format_bytes(goal.host_bytes)));
}

}  // namespace

AllocationGoal AllocationGoal::of_size(std::uint64_t bytes) {
    AllocationGoal goal;
    goal.size = {SizeGoal::Unit::bytes, static_cast<double>(bytes)};
    goal.text = fmt::format("--size {}", bytes);
    return goal;
}

SolvedGoal solve_goal(const GgufFile& source, const AllocationProblem& problem, const AllocationRequest& request) {
    SolvedGoal solved;
    switch (request.goal.kind) {
        case AllocationGoal::Kind::size:
            solved.budget_bytes = request.goal.size.bytes(source.n_weights());
            solved.allocation = allocate_within(problem, request.constraints, solved.budget_bytes);
            break;
        case AllocationGoal::Kind::max_kld:
            solved.allocation =
                allocate_under(constrained_for_any_size(problem, request.constraints), request.goal.max_kld);
            solved.budget_bytes = solved.allocation.file_bytes;
            break;
        case AllocationGoal::Kind::memory:
            solved = fit_memory(source, problem, request);
            break;
        case AllocationGoal::Kind::split:
            solved = split(source, problem, request);
            break;
    }
    solved.provenance["goal"] = request.goal.text;
    if (!request.constraints.all.empty()) solved.provenance["constraints"] = texts_of(request.constraints);
    if (request.constraints.max_types > 0)
        solved.provenance["max_types"] = std::to_string(request.constraints.max_types);
    return solved;
}

SolvedGoal solve_calibrated_goal(const GgufFile& source, const AllocationProblem& problem, AllocationRequest request,
                                 const Calibration& calibration) {
    if (request.goal.kind != AllocationGoal::Kind::max_kld) return solve_goal(source, problem, request);
    const double wanted = request.goal.max_kld;
    if (calibration.empty()) {
        auto solved = solve_goal(source, problem, request);
        solved.remarks.emplace_back(
            "the damage is the sum of what tensors do alone: no whole recipe of this journal was measured, and the "
            "file "
            "may do more damage; 'quantize' measures it, 'interactions' measures recipes");
        return solved;
    }
    constexpr int most_rounds = 10;
    constexpr double close_enough = 0.98, margin = 0.995;
    std::optional<SolvedGoal> best;
    for (int round = 0; round < most_rounds; ++round) {
        auto solved = solve_goal(source, problem, request);
        const auto predicted = calibration.predict(solved.allocation.cost);
        const double upper = predicted.mean + (std::isfinite(predicted.error) ? predicted.error : 0.0);
        if (upper <= wanted && (!best || solved.allocation.file_bytes < best->allocation.file_bytes)) {
            solved.remarks.push_back(fmt::format(
                "damage of the whole file, calibrated by measured recipes: {:.5g} + {:.2g} (one standard error) "
                "where at most {:g} is wanted",
                predicted.mean, upper - predicted.mean, wanted));
            best = std::move(solved);
        }
        if (!(upper > 0.0) || (upper <= wanted && upper >= close_enough * wanted)) break;
        request.goal.max_kld *= margin * wanted / upper;
    }
    if (best) return *best;
    throw Error(fmt::format("no file is predicted to stay under a KLD of {:g} with its error; ask for a --size instead",
                            wanted));
}

bool reaches_goal(const GgufFile& source, const TypeMap& types, const AllocationGoal& goal) {
    if (goal.kind == AllocationGoal::Kind::split) return false;
    return goal.kind != AllocationGoal::Kind::memory ||
           memory_of(source, types, goal.serving).device.total() <= goal.device_bytes;
}

Recipe make_recipe(const GgufFile& source, const Journal& journal, const SolvedGoal& solved, const Aim& aim) {
    Recipe recipe;
    recipe.types = solved.allocation.types;
    recipe.source_fingerprint = source.fingerprint();
    recipe.source_name = source.path().filename().string();
    recipe.source_tensors = tensor_identities(source);
    recipe.file_bytes = solved.allocation.file_bytes;
    recipe.provenance = solved.provenance;
    recipe.provenance["cerebellum"] = CEREBELLUM_VERSION;
    recipe.provenance["llama.cpp"] = CEREBELLUM_LLAMA_VERSION;
    recipe.provenance["budget_bytes"] = std::to_string(solved.budget_bytes);
    const bool in_kld = aim.objective == Objective::kld;
    recipe.provenance[in_kld ? "lower_bound_kld" : "lower_bound_objective"] =
        fmt::format("{:.9g}", solved.allocation.lower_bound);
    if (!in_kld) {
        recipe.provenance["objective"] = objective_name(aim.objective);
        recipe.provenance["predicted_objective"] = fmt::format("{:.6g}", solved.allocation.cost);
    }
    if (!aim.profile.empty()) recipe.provenance["profile"] = aim.profile;
    recipe.provenance["optimal"] = solved.allocation.exact ? "yes" : "within the gap to the lower bound";
    for (const auto& [field, value] : journal.identity().fields)
        if (field != "model") recipe.provenance["measured." + field] = value;
    recipe.provenance["journal_sha256"] = measurements_sha256(journal);
    if (const auto imatrix = imatrix_from_journal(journal)) {
        // The name is part of the file's metadata, and so of its size: whoever builds the recipe uses the same.
        recipe.provenance["imatrix"] = journal.get_meta("imatrix_name").value_or("");
        recipe.provenance[imatrix_digest_key] = imatrix_sha256(*imatrix);
    }
    note_moments(journal, recipe);
    const Aim kld{Objective::kld, aim.profile, aim.rounding};
    const auto problem = make_problem(source, journal, std::nullopt, kld);
    note_prediction(problem, make_calibration(problem, journal, kld), recipe);
    return recipe;
}

std::string override_flags(const std::vector<std::string>& on_host) {
    std::string flags = "--n-gpu-layers 999";
    for (const auto& pattern : on_host) flags += fmt::format(" --override-tensor '{}=CPU'", pattern);
    return flags;
}

}  // namespace cerebellum
