#include "cerebellum/cli/dry_run.h"

#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "cerebellum/core/error.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/size.h"
#include "cerebellum/core/time_left.h"
#include "cerebellum/report/table.h"

namespace cerebellum::cli {

namespace {

std::string amount(double value, double unit, const char* name) {
    return value > 0.0 ? fmt::format("{:.3g} {}", value / unit, name) : "";
}

std::string describe(const JobPlan& plan) {
    std::vector<std::vector<std::string>> rows;
    for (const auto& stage : plan.stages) {
        std::string measured;
        if (stage.fast + stage.full + stage.resumed > 0)
            measured = fmt::format("{} fast, {} full", stage.fast, stage.full);
        if (stage.mixes > 0) measured = fmt::format("{} mixes", stage.mixes);
        rows.push_back({stage.name, measured, amount(stage.quantized_weights, 1e6, "million"),
                        amount(stage.replay_flops, 1e12, "TFLOP"),
                        stage.read_bytes > 0.0 ? format_bytes(static_cast<std::uint64_t>(stage.read_bytes)) : "",
                        stage.seconds ? format_seconds(*stage.seconds) : "unknown"});
    }
    rows.push_back({"all", "", "", "", "", format_seconds(plan.seconds())});
    return format_table({"stage", "measured", "weights quantized", "replayed", "read", "time"}, rows);
}

}  // namespace

int rounds_of(int asked, Effort effort, const QuantizeOptions& options, const ConstraintOptions& constraints) {
    if (asked >= 0) return asked;
    const bool can = options.request.goal.kind == AllocationGoal::Kind::size && constraints.empty() &&
                     options.aim.objective == Objective::kld;
    return can ? effort_rounds(effort) : 0;
}

JobRequest job_request(const std::filesystem::path& model, const QuantizeOptions& options) {
    if (std::filesystem::is_directory(model))
        throw UsageError(
            fmt::format("--dry-run needs a GGUF; make one first: cerebellum convert {} -o model.gguf", model.string()));
    return planned_job(GgufFile::open(model), options);
}

int dry_run(const RunOptions& options, const JobRequest& request, bool json, Progress& progress) {
    const auto plan = plan_ahead(options, request, progress);
    if (json) {
        fmt::print("{}\n", json_to_text(to_json(plan), 2));
        return 0;
    }
    fmt::print("{}\n", describe(plan));
    std::size_t resumed = 0;
    for (const auto& stage : plan.stages) resumed += stage.resumed;
    if (resumed > 0) fmt::print("{} measurements are in {} already.\n", resumed, plan.journal);
    fmt::print("Memory: about {} ({}).\n", format_bytes(plan.memory_bytes), plan.memory);
    if (plan.output_bytes > 0)
        fmt::print("Disk: {} for the file, {} beside it while it is made.\n", format_bytes(plan.output_bytes),
                   format_bytes(plan.scratch_bytes));
    if (const auto label = effort_label(plan.effort); !label.empty()) fmt::print("{}.\n", label);
    fmt::print("Times are estimates from samples of the work on this machine as it is now. Nothing was written.\n");
    return 0;
}

}  // namespace cerebellum::cli
