#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cerebellum/cli/commands.h"
#include "cerebellum/cli/crush.h"
#include "cerebellum/cli/dry_run.h"
#include "cerebellum/cli/options.h"
#include "cerebellum/cli/terminal.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/size.h"
#include "cerebellum/core/stats.h"
#include "cerebellum/pipeline/member.h"
#include "cerebellum/pipeline/sequential.h"
#include "cerebellum/predict/damage.h"
#include "cerebellum/predict/damage_rows.h"
#include "cerebellum/report/table.h"

namespace cerebellum::cli {

namespace {

nlohmann::json rows_of(const std::vector<Measurement>& measurements, const Session& session) {
    auto rows = damage_rows(measurements);
    for (auto& row : rows) {
        row["null_floor_kld"] = session.null_floor_kld();
        row["reference"] = session.reference_name();
        if (session.options().effort != Effort::normal) row["effort"] = effort_name(session.options().effort);
    }
    return rows;
}

/// What the ranks other than 0 do. They say nothing to the user, rank 0 does.
int assist(Group& group, const CommonOptions& common) {
    NoProgress progress;
    RunOptions options;
    try {
        options = options_of_rank(run_options(common, ""), group);
    } catch (const Error& error) {
        give_up(group, error.what());
        return 1;
    }
    return take_part(group, std::move(options), progress) ? 0 : 1;
}

/// --dry-run.
int plan_of(const CommonOptions& common) {
    if (common.model.empty()) throw UsageError("model is required; see 'cerebellum ablate --help'");
    if (!common.shard.empty()) throw UsageError("--dry-run goes without --shard: it plans the whole");
    TerminalProgress progress(common.quiet, common.verbose);
    JobRequest request;
    request.whole = false;
    return dry_run(run_options(common, ""), request, common.json, progress);
}

/// Makes all that measuring begins with, so that shards need not make it again and stand on the same.
int prepare_journal(Session& session, bool json, Progress& progress) {
    const auto plan = session.measurable_plan();
    const auto items = session.work_items(plan);
    if (json)
        fmt::print("{}\n", json_to_text(nlohmann::json{{"journal", session.journal().path().string()},
                                                       {"windows", session.measured_windows().size()},
                                                       {"tensors", plan.size()},
                                                       {"parts", items.size()}},
                                        2));
    progress.info(
        fmt::format("{} holds the text and the importance matrix; {} tensors are to be measured, in at most "
                    "{} parts. Let every --shard begin with a copy of it.",
                    session.journal().path().string(), plan.size(), items.size()));
    return 0;
}

SweepSummary measure_for(Session& session, const std::vector<SizeGoal>& goals, Progress& progress) {
    SequentialOptions options;
    for (const auto& goal : goals) options.budgets_bytes.push_back(goal.bytes(session.source().n_weights()));
    const auto report = measure_sequentially(session, options, progress);
    progress.info(describe(report));
    return report.sweep;
}

std::string describe(const std::vector<Measurement>& measurements) {
    struct Line {
        std::string tensor;
        Damage damage;
    };
    std::vector<Line> lines;
    for (const auto& [tensor, damages] : predict_damage(measurements))
        for (const auto& damage : damages) lines.push_back({tensor, damage});
    std::ranges::stable_sort(lines, std::greater<>{}, [](const Line& line) { return line.damage.kld; });
    std::vector<std::vector<std::string>> rows;
    for (const auto& line : lines)
        rows.push_back({line.tensor, line.damage.type,
                        with_error(fmt::format("{:.3e}", line.damage.kld), line.damage.error, "{:.1e}"),
                        std::string(tier_name(line.damage.tier))});
    return format_table({"tensor", "type", "KLD (nats per token)", "tier"}, rows);
}

}  // namespace

Command add_ablate(CLI::App& app) {
    auto common = std::make_shared<CommonOptions>();
    auto sizes = std::make_shared<std::vector<std::string>>();
    auto crush = std::make_shared<CrushValues>();
    auto prepare = std::make_shared<bool>(false);
    auto* command = app.add_subcommand("ablate", "Only measure: what each tensor loses at each type");
    command->footer(
        "Examples:\n  cerebellum ablate model-f16.gguf --json > damage.json\n"
        "  cerebellum ablate model-f16.gguf --shard 3/16 --journal shard-3.db\n"
        "  cerebellum ablate model-f16.gguf --baseline Q4_K_M --crush q2_K -o ablation_results.json\n"
        "  cerebellum ablate --base-gguf model-q4_k_m.gguf --tensors plan.json -o ablation_results.json\n\n"
        "Every figure is kept in the journal the moment it is made; run the command again to go on.");
    add_crush(*command, *common, *crush);
    add_measuring(*command, *common);
    add_dry_run(*command, *common);
    command
        ->add_option(
            "--tensors", common->tensors,
            "Only tensors whose name matches, as 'blk.1?.ffn_*'; repeatable. Later runs add others. Or a plan, "
            "as --plan takes it")
        ->type_name("GLOB");
    command
        ->add_option("--size", *sizes,
                     "With --sequential: size of a file that the figures are for, as 12GB or 4.25bpw; repeatable")
        ->type_name("SIZE");
    command
        ->add_option("--shard", common->shard,
                     "Measure only this of so many parts, as 3/16, which take about as long each; see 'cerebellum "
                     "journal merge'")
        ->type_name("I/N");
    command->add_flag("--prepare", *prepare,
                      "Only make the journal with the text and the importance matrix: what shards begin with");
    add_json(*command, *common);
    return [common, sizes, crush, prepare] {
        auto planned = take_plans(*common, *crush);
        if (crush->wanted()) {
            if (common->sequential || !sizes->empty())
                throw UsageError("--sequential and --size: a classical sweep measures every tensor on all windows");
            if (!common->shard.empty() || *prepare)
                throw UsageError("--shard and --prepare: a classical sweep cannot be split; give it --tensors instead");
            if (launched_processes() > 1)
                throw UsageError("mpirun: a classical sweep runs in one process; start it without");
            if (common->quick || common->thorough || common->dry_run)
                throw UsageError("--quick, --thorough and --dry-run: a classical sweep knows no efforts");
            return run_crush(*common, *crush, planned);
        }
        std::ranges::move(planned, std::back_inserter(common->tensors));
        if (common->rounding != "ggml" && (!common->shard.empty() || *prepare || launched_processes() > 1))
            throw UsageError(
                fmt::format("--rounding {}: the second moments that it needs are collected by one process, which then "
                            "measures all; "
                            "leave out --shard, --prepare and mpirun, or use --rounding ggml",
                            common->rounding));
        effort_of(*common);
        if (common->dry_run) return plan_of(*common);
        const auto group = Group::join();
        if (group->size() > 1) wait_for_safe_points();
        if (group->rank() > 0) return assist(*group, *common);
        GroupExecutor executor(*group);  // lets the other ranks go, whatever happens here
        if (common->model.empty()) throw UsageError("model is required; see 'cerebellum ablate --help'");
        if (common->sequential == sizes->empty())
            throw UsageError("--sequential and --size go together: what is worth measuring depends on the size");
        if (common->sequential && !common->shard.empty())
            throw UsageError("--sequential and --shard: what is measured next depends on the figures of all shards");
        std::vector<SizeGoal> goals;
        for (const auto& size : *sizes) goals.push_back(parse_size(size));
        TerminalProgress progress(common->quiet, common->verbose);
        Session session(options_of_rank(run_options(*common, ""), *group), progress);
        if (*prepare) return prepare_journal(session, common->json, progress);
        if (group->size() > 1) session.distribute(executor);
        const auto summary = common->sequential ? measure_for(session, goals, progress) : session.measure();
        const auto measurements = session.journal().measurements();
        if (common->json)
            fmt::print("{}\n", json_to_text(rows_of(measurements, session), 1));
        else
            fmt::print("{}", describe(measurements));
        if (session.options().reference)
            progress.info(fmt::format("Damage is counted from {}.", session.reference_name()));
        progress.info(
            fmt::format("{} fast and {} full measurements of {:.0f} tokens together, {} from the journal {}; {:.1f} "
                        "TFLOP replayed in "
                        "{}, quantizing took {}",
                        summary.fast_measured, summary.full_measured, summary.tokens, summary.resumed,
                        session.journal().path().string(), summary.replay_flops / 1e12,
                        format_seconds(summary.replay_s), format_seconds(summary.quantize_s)));
        progress.detail(describe(session.times().stages()));
        if (const auto label = effort_label(session.options().effort); !label.empty()) progress.info(label + ".");
        return 0;
    };
}

}  // namespace cerebellum::cli
