#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cerebellum/core/progress.h"
#include "cerebellum/pipeline/session.h"
#include "cerebellum/sweep/costs.h"
#include "cerebellum/sweep/runner.h"

namespace cerebellum {

/// What a job is to do beside measuring.
struct JobRequest {
    bool whole = true;               // allocate, compete, build and verify; else only measure
    std::uint64_t budget_bytes = 0;  // of the file, where one is built
    int rounds = 0;                  // at most
    double search_seconds = 0.0;
    bool compare_all = false;  // replay every stock mix
};

/// A stage of a job before it is run; what the journal holds already is not in it.
struct PlannedStage {
    std::string name;         // as StageTimes has it
    std::size_t fast = 0;     // measurements to the end of a block
    std::size_t full = 0;     // and to the end of the model
    std::size_t resumed = 0;  // that the journal holds
    std::size_t mixes = 0;    // whole mixes that are replayed
    double quantized_weights = 0.0;
    double replay_flops = 0.0;
    double read_bytes = 0.0;        // of the source
    std::optional<double> seconds;  // none where nobody knows
};

struct JobPlan {
    Effort effort = Effort::normal;
    std::string journal;
    std::vector<PlannedStage> stages;
    Rates rates;
    std::uint64_t memory_bytes = 0;  // largest amount of host memory, without what the system keeps of files
    std::string memory;              // how it is used
    std::uint64_t output_bytes = 0;
    std::uint64_t scratch_bytes = 0;  // on the output's disk while the job runs

    /// Of all stages whose time is known.
    double seconds() const;
    /// Of those behind the named one.
    double seconds_after(std::string_view stage) const;
};

/// Plans for a session whose model is replayed; text and importance matrix are there, or stand-ins for them.
JobPlan plan_job(Session& session, const JobRequest& request, const Rates& rates);

/// Plans a job that nothing is known of yet: loads the model, checks that it can be replayed and times samples of the
/// work; types with codebooks have tables that take some seconds to build, once. Nothing is left behind: no journal,
/// text or output is written. Throws Error as a Session does where the options cannot be used or the journal belongs to
/// others.
JobPlan plan_ahead(const RunOptions& options, const JobRequest& request, Progress& progress);

nlohmann::json to_json(const JobPlan& plan);

}  // namespace cerebellum
