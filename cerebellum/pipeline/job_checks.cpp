#include "cerebellum/pipeline/job_checks.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/size.h"
#include "cerebellum/pipeline/allocation.h"
#include "cerebellum/pipeline/job_plan.h"

namespace cerebellum {

namespace fs = std::filesystem;

namespace {

/// A budget below the smallest possible file is refused before anything is measured.
void check_budget(Session& session, std::uint64_t budget_bytes) {
    const auto& source = session.source();
    std::map<std::string, std::vector<Encoding>> candidates;
    for (const auto& entry : session.plan())
        if (session.is_measurable(entry.name)) candidates[entry.name] = entry.types;
    // An earlier run may have measured more; what was asked for holds.
    if (session.options().types.empty())
        for (const auto& measured : session.journal().measurements())
            if (const auto type = parse_encoding(measured.type)) candidates[measured.tensor].push_back(*type);
    AllocationProblem problem;
    problem.fixed_bytes = fixed_bytes(source, imatrix_info(session.imatrix(), session.imatrix_name()));
    for (const auto& tensor : source.tensors()) {
        TypeChoice smallest{tensor.type, tensor_bytes(tensor, tensor.type), 0.0};
        for (const auto type : candidates[tensor.name])
            if (const auto bytes = tensor_bytes(tensor, type.type); bytes < smallest.bytes)
                smallest = {type, bytes, 0.0};
        problem.tensors.push_back({tensor.name, {smallest}});
    }
    allocate(problem, budget_bytes);
}

/// Throws UsageError where the model cannot be measured both as it is and scaled.
void check_scaling_options(Session& session, const QuantizeOptions& options) {
    if (options.request.goal.kind != AllocationGoal::Kind::size)
        throw UsageError("--scaling auto goes with a size only");
    if (session.options().reference)
        throw UsageError("--scaling auto goes without --reference: the scaled model is measured against the source");
    if (!session.replays())
        throw UsageError("--scaling auto needs the model to be replayed, which was not possible or not wanted");
}

/// What makes the result less than what was hoped for, and is known before hours of work.
void warn_of_source(Session& session, std::uint64_t budget_bytes, bool sized, Progress& progress) {
    const auto& source = session.source();
    TypeMap types;  // any that is no tensor's own: which it will be needs the importance matrix
    for (const auto& name : session.wanted_tensors()) types[name] = GGML_TYPE_F32;
    if (const auto warning = requantization_warning(source, types); !warning.empty()) progress.warn(warning);
    if (sized && budget_bytes >= source.file_size())
        progress.warn(fmt::format(
            "the size asked for, {}, is no less than {}'s own {}: nothing needs to be quantized to reach it; look "
            "whether it was meant in another unit",
            format_bytes(budget_bytes), source.path().filename().string(), format_bytes(source.file_size())));
}

}  // namespace

std::uint64_t check_job(Session& session, const QuantizeOptions& options, Progress& progress) {
    const auto& source = session.source();
    const auto& goal = options.request.goal;
    const bool sized = goal.kind == AllocationGoal::Kind::size;
    const auto budget_bytes = sized ? goal.size.bytes(source.n_weights()) : source.file_size();
    check_output_path(options.output, std::min(budget_bytes, source.file_size()), options.overwrite);
    if (fs::exists(options.output) && fs::equivalent(options.output, source.path()))
        throw Error(fmt::format("the output {} is the source itself; choose another name", options.output.string()));
    check_own_recipes_options(options);
    warn_of_source(session, budget_bytes, sized, progress);
    if (options.scaling) check_scaling_options(session, options);
    if (sized) check_budget(session, budget_bytes);
    parse_profile(options.aim.profile, session.text().calibration_domains);
    if (options.search_seconds > 0.0) check_search_text(session);
    return budget_bytes;
}

JobRequest planned_job(const GgufFile& source, const QuantizeOptions& options) {
    const auto& goal = options.request.goal;
    JobRequest request;
    request.compare_all = options.compare_all;
    request.rounds = options.rounds;
    request.search_seconds = options.search_seconds;
    constexpr double usual_bits = 4.5;
    request.budget_bytes = static_cast<std::uint64_t>(usual_bits / 8.0 * static_cast<double>(source.n_weights()));
    if (goal.kind == AllocationGoal::Kind::size) request.budget_bytes = goal.size.bytes(source.n_weights());
    if (goal.device_bytes + goal.host_bytes > 0) request.budget_bytes = goal.device_bytes + goal.host_bytes;
    request.budget_bytes = std::min(request.budget_bytes, source.file_size());
    return request;
}

/// Says at the begin of every stage what it and the rest will take, where the job is long enough for that to matter.
void announce(Session& session, const QuantizeOptions& options) {
    constexpr double long_s = 20.0;
    if (!options.expect || !session.replays()) return;
    const auto wanted = session.plan();
    if (session.estimate(wanted, {}).seconds < long_s) return;
    session.times().on_begin = [expect = options.expect,
                                plan = plan_job(session, planned_job(session.source(), options),
                                                session.rates(wanted))](std::string_view name) {
        const auto stage = std::ranges::find(plan.stages, name, &PlannedStage::name);
        // Measuring knows better what of it is left.
        const double stage_s = name == "measuring" || stage == plan.stages.end() ? 0.0 : stage->seconds.value_or(0.0);
        if (stage != plan.stages.end()) expect(stage_s, plan.seconds_after(name));
    };
}

}  // namespace cerebellum
