#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "cerebellum/allocate/constraints.h"
#include "cerebellum/allocate/recipe_problem.h"
#include "cerebellum/build/recipe.h"
#include "cerebellum/core/size.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/journal/journal.h"
#include "cerebellum/llama/memory.h"
#include "cerebellum/pipeline/aim.h"
#include "cerebellum/predict/calibration.h"

namespace cerebellum {

/// What a file is to be.
struct AllocationGoal {
    enum class Kind {
        size,     // at most so large
        max_kld,  // as small as can be with at most this predicted damage
        memory,   // so large that running it takes at most `device_bytes` of the device, cache and buffers included
        split,    // weights of at most `device_bytes` on the device and `host_bytes` beside it
    };
    Kind kind = Kind::size;
    SizeGoal size = {};
    double max_kld = 0.0;  // nats per token
    std::uint64_t device_bytes = 0;
    std::uint64_t host_bytes = 0;
    ServingSetup serving = {};
    std::string text;  // as the user wrote it

    /// A goal of a number of bytes, whatever its kind was: what a solved goal comes to.
    static AllocationGoal of_size(std::uint64_t bytes);
};

struct AllocationRequest {
    AllocationGoal goal;
    Constraints constraints;
};

struct SolvedGoal {
    Allocation allocation;
    std::uint64_t budget_bytes = 0;    // of the file: given, or what the goal comes to
    std::vector<std::string> remarks;  // for the user: what memory is used for, where tensors go
    std::vector<std::string> on_host;  // regular expressions for --override-tensor REGEX=CPU
    std::map<std::string, std::string> provenance;
};

/// Solves the problem, which offers all choices there are, under the request's
/// constraints for the request's goal. Throws Error where it cannot be reached, naming what is in the way.
SolvedGoal solve_goal(const GgufFile& source, const AllocationProblem& problem, const AllocationRequest& request);

/// The same, but a largest damage holds for the whole file as measured recipes calibrate it, one standard error on top.
/// Without such recipes it holds for the sum of single damages, which a remark says. `problem` is in KLD.
SolvedGoal solve_calibrated_goal(const GgufFile& source, const AllocationProblem& problem, AllocationRequest request,
                                 const Calibration& calibration);

/// Whether a file with these types, already known to be small enough, serves the goal as well: for memory by
/// llama.cpp's account. Never for a split goal, whose tensors are placed for one file alone.
bool reaches_goal(const GgufFile& source, const TypeMap& types, const AllocationGoal& goal);

/// The recipe of a solved goal, with everything in its provenance that it follows from. `aim` is what the goal was
/// solved for; whatever its objective, the recipe's predicted_kld is a KLD.
Recipe make_recipe(const GgufFile& source, const Journal& journal, const SolvedGoal& solved, const Aim& aim = {});

/// The flags that make llama.cpp put tensors where a split goal wants them; empty for other goals.
std::string override_flags(const std::vector<std::string>& on_host);

}  // namespace cerebellum
