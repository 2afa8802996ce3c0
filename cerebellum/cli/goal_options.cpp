#include "cerebellum/cli/goal_options.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cerebellum/cli/options.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/parallel.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/replay/kernel_speed.h"

namespace cerebellum::cli {

namespace {

std::uint64_t amount(const char* option, const std::string& text) {
    const auto bytes = parse_bytes(option, text);
    if (bytes == 0) throw UsageError(fmt::format("{} is missing or zero; write it as 12GiB", option));
    return bytes;
}

std::vector<ggml_type> types_fast_on(const std::string& device, int threads) {
    std::vector<ggml_type> candidates = {GGML_TYPE_F16, GGML_TYPE_BF16};
    candidates.insert(candidates.end(), default_types().begin(), default_types().end());
    return fast_types(measure_kernels(device, threads > 0 ? threads : physical_cores(), candidates));
}

}  // namespace

void add_goal(CLI::App& command, GoalOptions& options) {
    const char* group = "Goal (one of)";
    command.add_option("--size", options.size, "Size of the file: 12GB, 11.5GiB, 800MB, 4.25bpw")
        ->type_name("SIZE")
        ->group(group);
    command.add_option("--bpw", options.bpw, "The same in bits per weight: 4.25")->group(group);
    command
        .add_option("--max-kld", options.max_kld, "The smallest file that stays under this damage, in nats per token")
        ->check(CLI::PositiveNumber)
        ->group(group);
    command
        .add_option("--vram", options.vram,
                    "The best file that runs in so much memory, cache and compute buffers included: 12GiB")
        ->group(group);
    command
        .add_option("--gpu-size", options.gpu_size,
                    "With --cpu-size: weights of at most so much on the GPU, and the flags that put them there")
        ->group(group);
    command.add_option("--cpu-size", options.cpu_size, "Weights of at most so much beside the GPU")->group(group);
    const char* serving = "How the file will be run (for --vram and --gpu-size)";
    command
        .add_option("--serve-ctx", options.context,
                    fmt::format("Tokens of context, of all sequences together (default: {})", ServingSetup().context))
        ->check(CLI::PositiveNumber)
        ->group(serving);
    command.add_option("--parallel", options.parallel, "Sequences at a time")
        ->check(CLI::PositiveNumber)
        ->capture_default_str()
        ->group(serving);
    command.add_option("--kv", options.cache_type, "Type of the cache: f16, q8_0, q4_0")
        ->capture_default_str()
        ->group(serving);
    command
        .add_option("--serve-on", options.serve_on,
                    "Device whose memory is counted: CUDA0, or host:port of a ggml RPC server (default: the first GPU)")
        ->type_name("NAME")
        ->group(serving);
}

void add_window(CLI::App& command, int& window) {
    command.add_option("--window", window, "Older name of --ctx")->check(CLI::PositiveNumber);
}

int settle_contexts(GoalOptions& goal, int context, int window, Progress& progress) {
    const bool of_memory = !goal.vram.empty() || !goal.gpu_size.empty();
    if (window > 0) progress.warn("--window is called --ctx now");
    if (of_memory && goal.context == 0 && context > 0) {
        progress.warn(
            "--ctx is taken for the context that the file will be run with, as before; it is called --serve-ctx now");
        goal.context = context;
        return window;
    }
    return window > 0 ? window : context;
}

void add_compare(CLI::App& command, std::string& compare) {
    command
        .add_option("--compare", compare,
                    "Which stock mixes are replayed to be compared with ours: auto, those that may turn out to be "
                    "better by what is predicted of them, or all")
        ->check(CLI::IsMember({"auto", "all"}))
        ->capture_default_str();
}

void add_constraints(CLI::App& command, ConstraintOptions& options) {
    const char* group = "What tensors must obey";
    const auto rules = [&](const char* name, std::vector<std::string>& values, const char* help) {
        command.add_option(name, values, help)->type_name("GLOB=TYPE")->group(group);
    };
    rules("--pin", options.pins,
          "These tensors get exactly this type, as token_embd=q8_0, 'blk.[0-3].*=q6_K' or attn_v=q6_K; repeatable. The "
          "glob is a name, with or without .weight, or a role");
    rules("--floor", options.floors, "At least as many bits as this type; repeatable");
    rules("--ceiling", options.ceilings, "At most as many bits as this type; repeatable");
    command
        .add_option("--couple", options.couplings,
                    "One type for these tensors of a block: qkv, gate-up, experts; repeatable")
        ->type_name("KIND")
        ->group(group);
    command
        .add_option("--protect-layers", options.protect,
                    "At least q6_K (or type=T) for so many blocks at each end: first=2,last=1")
        ->type_name("WHICH")
        ->group(group);
    command.add_option("--only-types", options.only_types, "Choose among these types only, comma-separated")
        ->group(group);
    command
        .add_option(
            "--fast-types", options.fast_on,
            "Choose only among types that this device (CPU, CUDA0, ...) multiplies as fast as q8_0; measured now")
        ->type_name("DEVICE")
        ->group(group);
    command.add_option("--max-types", options.max_types, "At most so many different types")
        ->check(CLI::PositiveNumber)
        ->group(group);
}

AllocationGoal goal_of(const GoalOptions& options) {
    const bool split = !options.gpu_size.empty() || !options.cpu_size.empty();
    const int given =
        !options.size.empty() + !options.bpw.empty() + (options.max_kld > 0.0) + !options.vram.empty() + split;
    if (given != 1)
        throw UsageError(
            fmt::format("{} goals were given; give one of --size, --bpw, --max-kld, --vram, or --gpu-size "
                        "with --cpu-size",
                        given == 0 ? "no" : "several"));
    AllocationGoal goal;
    if (!options.size.empty() || !options.bpw.empty()) {
        const bool bits = options.size.empty();
        goal.size = parse_size(bits && !options.bpw.ends_with("bpw") ? options.bpw + "bpw"
                               : bits                                ? options.bpw
                                                                     : options.size);
        goal.text = bits ? "--bpw " + options.bpw : "--size " + options.size;
        return goal;
    }
    if (options.max_kld > 0.0) {
        goal.kind = AllocationGoal::Kind::max_kld;
        goal.max_kld = options.max_kld;
        goal.text = fmt::format("--max-kld {}", options.max_kld);
        return goal;
    }
    const auto cache_type = parse_type(options.cache_type);
    if (!cache_type) throw UsageError(fmt::format("--kv {}: ggml has no such type", options.cache_type));
    goal.serving = {options.serve_on.empty() ? default_serving_device() : options.serve_on,
                    options.context > 0 ? options.context : ServingSetup().context,
                    options.parallel,
                    *cache_type,
                    {}};
    if (split) {
        goal.kind = AllocationGoal::Kind::split;
        goal.device_bytes = amount("--gpu-size", options.gpu_size);
        goal.host_bytes = amount("--cpu-size", options.cpu_size);
        goal.text = fmt::format("--gpu-size {} --cpu-size {}", options.gpu_size, options.cpu_size);
    } else {
        goal.kind = AllocationGoal::Kind::memory;
        goal.device_bytes = amount("--vram", options.vram);
        goal.text = fmt::format("--vram {} --serve-ctx {} --kv {} --parallel {}", options.vram, goal.serving.context,
                                options.cache_type, options.parallel);
    }
    return goal;
}

Constraints constraints_of(const ConstraintOptions& options, int threads) {
    Constraints constraints;
    auto& all = constraints.all;
    for (const auto& text : options.pins) all.push_back(parse_rule(Constraint::Kind::pin, "--pin", text));
    for (const auto& text : options.floors) all.push_back(parse_rule(Constraint::Kind::floor, "--floor", text));
    for (const auto& text : options.ceilings) all.push_back(parse_rule(Constraint::Kind::ceiling, "--ceiling", text));
    for (const auto& text : options.couplings) all.push_back(parse_coupling("--couple", text));
    if (!options.protect.empty()) all.push_back(parse_protection("--protect-layers", options.protect));
    if (!options.only_types.empty())
        all.push_back(only_these_types("--only-types " + options.only_types, parse_types(options.only_types)));
    if (!options.fast_on.empty()) {
        const auto fast = types_fast_on(options.fast_on, threads);
        std::vector<std::string> names;
        names.reserve(fast.size());
        for (const auto type : fast) names.push_back(type_name(type));
        all.push_back(
            only_these_types(fmt::format("--fast-types {} ({})", options.fast_on, fmt::join(names, ",")), fast));
    }
    constraints.max_types = options.max_types;
    return constraints;
}

}  // namespace cerebellum::cli
