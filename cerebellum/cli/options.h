#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "cerebellum/pipeline/aim.h"
#include "cerebellum/pipeline/session.h"

namespace cerebellum::cli {

/// Options that every stage has which looks at a model.
struct CommonOptions {
    std::string model;
    std::vector<std::string> texts;
    std::string types;
    std::string rounding = "ggml";
    std::string journal;
    std::string imatrix;
    int tokens = 0;  // as many as the effort says
    int context = 0;
    int threads = 0;
    std::uint64_t seed = 1;
    bool full = false;
    bool sequential = false;
    std::string shard;
    bool no_replay = false;
    bool all_rows = false;
    std::vector<std::string> tensors;
    std::string reference;
    bool quick = false, thorough = false, dry_run = false;
    bool force = false;
    bool json = false;
    bool quiet = false;
    bool verbose = false;
    std::string rpc;
    std::string device, memory, device_memory, scratch;
    std::string objective = "kld", profile;
};

void add_model(CLI::App& command, CommonOptions& options);
void add_measuring(CLI::App& command, CommonOptions& options);
void add_dry_run(CLI::App& command, CommonOptions& options);
/// Throws UsageError where two were given.
Effort effort_of(const CommonOptions& options);
/// --rounds and --search: what is tried around a recipe.
void add_bettering(CLI::App& command, int& rounds, std::string& search);
void add_scaling(CLI::App& command, std::string& scaling);
/// --device, for what runs a model.
void add_device(CLI::App& command, std::string& device);
void add_device_memory(CLI::App& command, std::string& size);
/// --types: those that are measured, or that may be chosen.
void add_types(CLI::App& command, CommonOptions& options);
/// --rounding, for what measures.
void add_rounding(CLI::App& command, CommonOptions& options, const std::string& help);
/// --rounding, for what allocates from what was measured.
void add_chosen_rounding(CLI::App& command, CommonOptions& options);
void add_output(CLI::App& command, CommonOptions& options, std::string& output, const std::string& help);
void add_threads(CLI::App& command, CommonOptions& options);
void add_aim(CLI::App& command, CommonOptions& options);
void add_json(CLI::App& command, CommonOptions& options);

/// Throws UsageError where a value is not usable. `beside` names the output that the journal lies beside by default.
RunOptions run_options(const CommonOptions& options, const std::string& beside);
Aim aim_of(const CommonOptions& options);
/// Bytes of an option's "12GB"; 0 where it was not given.
std::uint64_t parse_bytes(const char* option, const std::string& text);
/// Throws UsageError.
RoundingChoice parse_rounding(const std::string& name);
/// Seconds of an option's "90s", "10m" or "1h".
double parse_seconds(const char* option, const std::string& text);
std::vector<ggml_type> parse_types(const std::string& list);
/// The default journal of a model: in the folder of `beside`, named after the model and an effort that is not the
/// default one.
std::filesystem::path default_journal(const std::string& model, const std::string& beside,
                                      Effort effort = Effort::normal);

}  // namespace cerebellum::cli
