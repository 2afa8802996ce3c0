#pragma once

#include <filesystem>

#include "cerebellum/cli/goal_options.h"
#include "cerebellum/pipeline/job_plan.h"
#include "cerebellum/pipeline/quantize.h"

namespace cerebellum::cli {

/// Rounds around the recipe: as many as were asked for, or, where nobody said (a negative number), as the effort has
/// where there can be any.
int rounds_of(int asked, Effort effort, const QuantizeOptions& options, const ConstraintOptions& constraints);

/// What quantize_model() is going to do. Throws UsageError where the model is no GGUF.
JobRequest job_request(const std::filesystem::path& model, const QuantizeOptions& options);

/// Prints the plan of a job, as a table or as JSON. Returns 0.
int dry_run(const RunOptions& options, const JobRequest& request, bool json, Progress& progress);

}  // namespace cerebellum::cli
