#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "cerebellum/core/progress.h"
#include "cerebellum/pipeline/goal.h"

namespace cerebellum::cli {

/// What the user wants of a file's size, and what tensors must obey; as given.
struct GoalOptions {
    std::string size, bpw, vram, gpu_size, cpu_size;
    double max_kld = 0.0;
    int context = 0;  // that the file will be run with; 0: not given
    int parallel = 1;
    std::string cache_type = "f16";
    std::string serve_on;
};

struct ConstraintOptions {
    std::vector<std::string> pins, floors, ceilings, couplings;
    std::string protect, only_types, fast_on;
    std::size_t max_types = 0;

    bool empty() const {
        return pins.empty() && floors.empty() && ceilings.empty() && couplings.empty() && protect.empty() &&
               only_types.empty() && fast_on.empty() && max_types == 0;
    }
};

void add_goal(CLI::App& command, GoalOptions& options);
/// --window: what --ctx was called where the goal took its name.
void add_window(CLI::App& command, int& window);
/// Tells the context that a file will be run with from that of the windows it is measured with, where older spellings
/// are used: --ctx with a goal of memory was the first, and --window the second. Says so where they are. `context` and
/// `window`: as given; returns tokens per window, 0 where nobody said.
int settle_contexts(GoalOptions& goal, int context, int window, Progress& progress);
void add_constraints(CLI::App& command, ConstraintOptions& options);
/// --compare: "auto" or "all".
void add_compare(CLI::App& command, std::string& compare);

/// Throws UsageError unless exactly one goal was given, or where a value cannot be read.
AllocationGoal goal_of(const GoalOptions& options);
/// Throws UsageError where a value cannot be read. --fast-types measures, which takes a moment.
Constraints constraints_of(const ConstraintOptions& options, int threads);

}  // namespace cerebellum::cli
