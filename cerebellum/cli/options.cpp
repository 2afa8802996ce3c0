#include "cerebellum/cli/options.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <cstdlib>
#include <map>
#include <string_view>
#include <system_error>

#include "cerebellum/core/error.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/size.h"
#include "cerebellum/pipeline/run_files.h"

namespace cerebellum::cli {

namespace fs = std::filesystem;

void add_model(CLI::App& command, CommonOptions& options) {
    command.add_option("model", options.model, "The source: a GGUF model in high precision (F16, BF16, F32)")
        ->required()
        ->type_name("MODEL.gguf");
}

namespace {

void add_effort(CLI::App& command, CommonOptions& options) {
    command.add_flag("--quick", options.quick,
                     "Rough figures in a fraction of the time: a quarter of the text, a few types; every output says "
                     "so");
    command.add_flag("--thorough", options.thorough,
                     "Four times the text, and --rounds 2 where a file of a size is made; takes several times as long");
}

}  // namespace

void add_measuring(CLI::App& command, CommonOptions& options) {
    command
        .add_option("--text", options.texts,
                    "Plain text to measure on, also gzip-compressed; repeatable. DOMAIN=FILE labels it, for --profile. "
                    "Without any "
                    "the model writes its own")
        ->type_name("[DOMAIN=]FILE");
    command
        .add_option(
            "--tokens", options.tokens,
            fmt::format("Tokens that every change is measured on (default: {})", effort_tokens(Effort::normal, 0)))
        ->check(CLI::PositiveNumber);
    add_effort(command, options);
    command
        .add_option("--ctx", options.context, "Tokens per window (default: 512, or the model's own context if smaller)")
        ->check(CLI::PositiveNumber);
    command.add_option("--seed", options.seed, "Seed of the text that the model writes")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    add_types(command, options);
    add_rounding(
        command, options,
        "How integers are chosen: ggml (each weight by itself), feedback (with the second moments of the "
        "matrix's input; the same types and sizes, less damage, more time), or auto (both are measured and the "
        "allocation picks, tensor by tensor)");
    command.add_option("--imatrix", options.imatrix, "An existing importance matrix (GGUF) instead of a computed one")
        ->type_name("FILE");
    command.add_flag("--full", options.full,
                     "Measure every type to the end of the model instead of estimating most of them");
    command.add_flag("--sequential", options.sequential,
                     "Measure few windows first and more only where they could still change the recipe");
    command
        .add_option("--reference", options.reference,
                    "q8_0: let a Q8_0 copy stand for the source when it runs; smaller and faster, less exact")
        ->type_name("TYPE");
    command.add_flag("--all-rows", options.all_rows,
                     "Measure every type on all rows of every matrix, not on a sample of them: slower, slightly more "
                     "exact");
    command.add_flag("--no-replay", options.no_replay,
                     "Measure through whole files that llama.cpp runs: slow, to check replaying against");
    command
        .add_option("--journal", options.journal,
                    "Where measurements are kept, to resume and to reuse (default: beside the output)")
        ->type_name("FILE");
    add_device(command, options.device);
    command
        .add_option(
            "--rpc", options.rpc,
            "ggml RPC servers, comma-separated, that divide the model among themselves and --device, where that is "
            "given; for trusted networks only")
        ->type_name("HOST:PORT,...");
    command
        .add_option("--memory", options.memory,
                    "Most memory to use, as 12GiB; weights are then streamed from the file if they must")
        ->type_name("SIZE");
    add_device_memory(command, options.device_memory);
    command
        .add_option("--scratch", options.scratch,
                    "Folder for states that fit in no memory (default: the system's temporary folder)")
        ->type_name("FOLDER");
    add_threads(command, options);
}

void add_device(CLI::App& command, std::string& device) {
    command
        .add_option(
            "--device", device,
            "Where to run the model: a ggml device such as CUDA0, or host:port of a ggml RPC server (default: CPU)")
        ->type_name("NAME");
}

void add_device_memory(CLI::App& command, std::string& size) {
    command.add_option("--device-memory", size, "Most memory of --device to use, as 10GiB (default: what is free)")
        ->type_name("SIZE");
}

void add_types(CLI::App& command, CommonOptions& options) {
    command.add_option("--types", options.types, "Only these types, comma-separated, for example q4_K,q6_K,iq4_xs");
}

void add_chosen_rounding(CLI::App& command, CommonOptions& options) {
    options.rounding = "auto";
    add_rounding(command, options,
                 "Which measured roundings may be chosen: ggml, feedback (where it was measured), auto (either)");
}

void add_rounding(CLI::App& command, CommonOptions& options, const std::string& help) {
    command.add_option("--rounding", options.rounding, help)->type_name("HOW")->capture_default_str();
}

void add_dry_run(CLI::App& command, CommonOptions& options) {
    command.add_flag("--dry-run", options.dry_run,
                     "Only say what would be done and how long it would take on this machine; writes nothing");
}

Effort effort_of(const CommonOptions& options) {
    if (options.quick && options.thorough) throw UsageError("--quick and --thorough: choose one of them");
    if (options.quick) return Effort::quick;
    return options.thorough ? Effort::thorough : Effort::normal;
}

void add_bettering(CLI::App& command, int& rounds, std::string& search) {
    command
        .add_option("--rounds", rounds,
                    "Up to so many times measure promotions and demotions around the recipe and allocate again "
                    "(default: 0)")
        ->check(CLI::NonNegativeNumber);
    command
        .add_option("--search", search,
                    "For about so long, as 10m, 90s or 1h, try swaps of precision between tensors on text that the "
                    "allocation has not seen, and keep those that are significantly better. Run again to go on")
        ->type_name("TIME");
}

void add_scaling(CLI::App& command, std::string& scaling) {
    command
        .add_option(
            "--scaling", scaling,
            "auto: also scale channels by powers of two where that changes nothing but what quantization loses, "
            "measure that model too, and deliver what is better; takes twice the time and a copy of the source "
            "on the disk")
        ->check(CLI::IsMember({"off", "auto"}))
        ->capture_default_str();
}

void add_output(CLI::App& command, CommonOptions& options, std::string& output, const std::string& help) {
    command.add_option("-o,--output", output, help)->required()->type_name("FILE");
    command.add_flag("--force", options.force, "Replace the output if it exists");
}

void add_threads(CLI::App& command, CommonOptions& options) {
    command.add_option("--threads", options.threads, "Threads (default: physical cores)")->check(CLI::PositiveNumber);
    command.add_flag("-q,--quiet", options.quiet, "No progress on stderr");
    command.add_flag("-v,--verbose", options.verbose, "Say how the work is planned");
}

void add_aim(CLI::App& command, CommonOptions& options) {
    command
        .add_option(
            "--objective", options.objective,
            "What is kept small: kld (from the source), nll (of the text: perplexity) or top1 (changed likeliest "
            "tokens)")
        ->check(CLI::IsMember({"kld", "nll", "top1"}))
        ->capture_default_str();
    command
        .add_option("--profile", options.profile,
                    "How the domains of labelled texts count: balanced, one of their names, or shares as "
                    "code=0.55,math=0.3,chat=0.15. Nothing is measured again")
        ->type_name("PROFILE");
}

Aim aim_of(const CommonOptions& options) {
    return {parse_objective(options.objective).value(), options.profile, parse_rounding(options.rounding),
            parse_types(options.types)};
}

void add_json(CLI::App& command, CommonOptions& options) {
    command.add_flag("--json", options.json, "Print the result as JSON");
}

std::vector<ggml_type> parse_types(const std::string& list) {
    std::vector<ggml_type> types;
    for (const auto& name : CLI::detail::split(list, ',')) {
        if (name.empty()) continue;
        const auto type = parse_type(name);
        if (!type || *type == GGML_TYPE_F32 || !type_is_quantizable(*type)) {
            std::string known = "f16, bf16";
            for (const auto candidate : default_types()) known += ", " + type_name(candidate);
            throw UsageError(fmt::format("'{}' is not a quantization type; known are {}", name, known));
        }
        types.push_back(*type);
    }
    if (types.empty() && !list.empty()) throw UsageError(fmt::format("--types {} names no type", list));
    return types;
}

RoundingChoice parse_rounding(const std::string& name) {
    const auto choice = parse_rounding_choice(name);
    if (!choice) throw UsageError(fmt::format("--rounding {}: it can be ggml, feedback or auto", name));
    return *choice;
}

std::uint64_t parse_bytes(const char* option, const std::string& text) {
    if (text.empty()) return 0;
    const auto goal = parse_size(text);
    if (goal.unit != SizeGoal::Unit::bytes)
        throw UsageError(fmt::format("{} {} is no amount of memory; write it as 12GB or 11.5GiB", option, text));
    return goal.bytes(0);
}

double parse_seconds(const char* option, const std::string& text) {
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    const std::map<std::string_view, double> units = {{"s", 1.0}, {"m", 60.0}, {"h", 3600.0}};
    const auto unit = units.find(end);
    if (end == text.c_str() || unit == units.end() || !std::isfinite(value) || !(value > 0.0))
        throw UsageError(fmt::format("{} {} is no time; write it as 90s, 10m or 1h", option, text));
    return value * unit->second;
}

fs::path default_journal(const std::string& model, const std::string& beside, Effort effort) {
    const auto made = effort == Effort::normal ? std::string() : fmt::format(".{}", effort_name(effort));
    return fs::path(beside).parent_path() / fmt::format("{}{}.cerebellum.db", fs::path(model).stem().string(), made);
}

namespace {

/// "FILE" or "DOMAIN=FILE"; a file of just this name is a file.
void add_text(const std::string& text, RunOptions& run) {
    const auto equals = text.find('=');
    const bool labelled = equals != std::string::npos && text.find('/') > equals && !fs::exists(text);
    if (labelled && (equals == 0 || text.find(',') < equals))
        throw UsageError(fmt::format("--text {}: a domain is a name without commas, as code=FILE", text));
    if (!run.texts.empty() && labelled == run.domains.empty())
        throw UsageError(fmt::format("--text {}: label all texts or none", text));
    if (labelled) run.domains.push_back(text.substr(0, equals));
    run.texts.emplace_back(labelled ? text.substr(equals + 1) : text);
}

/// "3/16".
Shard parse_shard(const std::string& text) {
    const auto slash = text.find('/');
    Shard shard;
    const auto number = [&](std::string_view digits, std::size_t& value) {
        const auto [end, failure] = std::from_chars(digits.begin(), digits.end(), value);
        return failure == std::errc() && end == digits.end();
    };
    if (slash == std::string::npos || !number(std::string_view(text).substr(0, slash), shard.index) ||
        !number(std::string_view(text).substr(slash + 1), shard.count) || shard.index < 1 || shard.index > shard.count)
        throw UsageError(fmt::format("--shard {}: write which of how many, as 3/16 (from 1/16 to 16/16)", text));
    return shard;
}

}  // namespace

RunOptions run_options(const CommonOptions& options, const std::string& beside) {
    RunOptions run;
    run.model = options.model;
    for (const auto& text : options.texts) add_text(text, run);
    run.effort = effort_of(options);
    run.tokens = options.tokens > 0 ? options.tokens : effort_tokens(run.effort, options.context);
    run.context = options.context;
    run.threads = options.threads;
    run.seed = options.seed;
    run.journal =
        options.journal.empty() ? default_journal(options.model, beside, run.effort) : fs::path(options.journal);
    if (!options.imatrix.empty()) run.imatrix = options.imatrix;
    run.types = parse_types(options.types);
    run.rounding = parse_rounding(options.rounding);
    run.full = options.full;
    run.no_replay = options.no_replay;
    run.all_rows = options.all_rows;
    run.tensors = options.tensors;
    if (!options.shard.empty()) run.shard = parse_shard(options.shard);
    if (!options.reference.empty() && options.reference != "source") {
        run.reference = parse_type(options.reference);
        if (run.reference != GGML_TYPE_Q8_0)
            throw UsageError(fmt::format("--reference {}: it can be the source or q8_0", options.reference));
    }
    run.device = options.device;
    for (const auto& server : CLI::detail::split(options.rpc, ',')) {
        if (server.empty()) continue;
        if (server.find(':') == std::string::npos)
            throw UsageError(fmt::format("--rpc {}: a server is written as host:port", server));
        run.rpc.push_back(server);
    }
    run.limits = {parse_bytes("--memory", options.memory), parse_bytes("--device-memory", options.device_memory),
                  options.scratch};
    OutputGuard guard(false);
    guard_run(guard, run);
    guard.check_apart();
    return run;
}

}  // namespace cerebellum::cli
