#include "cerebellum/cli/crush.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "cerebellum/cli/terminal.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/pipeline/crush_sweep.h"
#include "cerebellum/pipeline/run_files.h"
#include "cerebellum/predict/import_ablation.h"
#include "cerebellum/report/table.h"

namespace cerebellum::cli {

namespace fs = std::filesystem;

namespace {

/// The journal of a sweep: a baseline's measurements are no other's.
fs::path crush_journal(const CommonOptions& common, const std::string& model, const std::string& baseline,
                       const std::string& output) {
    if (!common.journal.empty()) return common.journal;
    auto name = fs::path(baseline).stem().string();
    std::ranges::transform(name, name.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return fs::path(output).parent_path() /
           fmt::format("{}.baseline-{}.cerebellum.db", fs::path(model).stem().string(), name);
}

std::string describe(const CrushSweep& sweep) {
    auto tensors = sweep.tensors;
    std::ranges::stable_sort(tensors, std::greater<>{}, [](const CrushedTensor& t) { return t.kld.mean; });
    std::vector<std::vector<std::string>> rows;
    for (const auto& t : tensors)
        rows.push_back({t.tensor, type_name(t.base_type), fmt::format("{:.4f}", t.perplexity),
                        fmt::format("{:+.4f}", t.perplexity - sweep.baseline_perplexity),
                        with_error(fmt::format("{:+.2e}", t.delta_nll.mean), t.delta_nll.error, "{:.1e}"),
                        with_error(fmt::format("{:.3e}", t.kld.mean), t.kld.error, "{:.1e}")});
    auto text = format_table({"tensor", "base", "perplexity", "change", "ΔNLL", "KLD from the baseline"}, rows);
    text += fmt::format("\nbaseline {}: perplexity {:.4f}", sweep.baseline, sweep.baseline_perplexity);
    if (sweep.baseline_kld)
        text += with_error(fmt::format(", KLD from the source {:.3e}", sweep.baseline_kld->mean),
                           sweep.baseline_kld->error, "{:.1e}");
    text += fmt::format("; {} tensors crushed to {} one at a time, {:.0f} scored tokens of {}\n", sweep.tensors.size(),
                        type_name(sweep.crush), sweep.tokens, sweep.text);
    for (const auto& tensor : sweep.skipped) text += fmt::format("skipped {}: {}\n", tensor.tensor, tensor.reason);
    return text;
}

}  // namespace

void add_crush(CLI::App& command, CommonOptions& common, CrushValues& values) {
    command
        .add_option("model,--source-gguf", common.model,
                    "The source: a GGUF model in high precision (F16, BF16, F32); with --base-gguf it may be left out")
        ->type_name("MODEL.gguf");
    command
        .add_option("--baseline", values.baseline,
                    "Classical sweep: everything at the types of 'source', a mix such as Q4_K_M, a recipe.json or a "
                    "GGUF, and one tensor at a time crushed")
        ->type_name("BASELINE");
    command
        .add_option("--base-gguf", values.base_gguf,
                    "The same with a GGUF as it is; without a MODEL the crushed bytes are made of it, too")
        ->type_name("FILE");
    command.add_option("--crush", values.crush, "The type that tensors are crushed to (default: q2_K)")
        ->type_name("TYPE");
    command.add_option("--plan", values.plan, "Only the tensors of a plan: {\"tensors\": [{\"name\": …}]}")
        ->type_name("FILE");
    command
        .add_option("-o,--output", values.output,
                    "The sweep as ablation_results.json, which 'allocate --ablation' reads")
        ->type_name("FILE");
    command.add_flag("--force", common.force, "Replace the output if it exists");
}

std::vector<std::string> take_plans(CommonOptions& common, const CrushValues& values) {
    std::vector<std::string> plans, names;
    if (!values.plan.empty()) plans.push_back(values.plan);
    std::erase_if(common.tensors, [&](const std::string& value) {
        if (!value.ends_with(".json") || !fs::exists(value)) return false;
        plans.push_back(value);
        return true;
    });
    for (const auto& plan : plans) std::ranges::move(read_ablation_plan(plan), std::back_inserter(names));
    if (!names.empty() && !common.tensors.empty()) throw UsageError("--tensors: give a plan or patterns, not both");
    return names;
}

int run_crush(const CommonOptions& common, const CrushValues& values, const std::vector<std::string>& tensors) {
    if (!values.baseline.empty() && !values.base_gguf.empty())
        throw UsageError("--base-gguf is a --baseline; give one of them");
    if (common.model.empty() && values.base_gguf.empty())
        throw UsageError("no model is given: name the source, or a file with --base-gguf");
    if (!common.reference.empty()) throw UsageError("--reference and a baseline exclude each other; give one of them");
    if (!common.types.empty()) throw UsageError("--types: a classical sweep has one type, --crush");
    if (common.rounding == "feedback")
        throw UsageError("--rounding feedback: a classical sweep crushes with ggml's own rounding");
    CrushOptions options;
    options.baseline = !values.base_gguf.empty()  ? values.base_gguf
                       : !values.baseline.empty() ? values.baseline
                                                  : "source";
    options.tensors = tensors;
    if (!values.crush.empty()) {
        const auto types = parse_types(values.crush);
        if (types.size() != 1) throw UsageError(fmt::format("--crush {}: name one type", values.crush));
        options.crush = types.front();
    }
    CommonOptions of_run = common;
    of_run.rounding = "ggml";
    if (of_run.model.empty()) of_run.model = values.base_gguf;
    TerminalProgress progress(common.quiet, common.verbose);
    auto run = run_options(of_run, values.output);
    run.journal = crush_journal(common, of_run.model, options.baseline, values.output);
    OutputGuard guard(common.force);
    guard.writes("the sweep", values.output).reads("the plan", values.plan);
    guard_run(guard, run);
    if (fs::exists(options.baseline)) guard_model(guard, "the baseline", options.baseline);
    const auto lock = guard.lock();
    if (of_run.model == values.base_gguf)
        progress.info("no high-precision source is given: crushed tensors are made of the base's own, rounded ones");
    const auto sweep = crush_sweep(std::move(run), options, progress);
    const auto document = json_to_text(ablation_json(sweep), 1) + "\n";
    if (!values.output.empty()) write_file_atomically(values.output, document);
    fmt::print("{}", common.json ? document : describe(sweep));
    progress.info(fmt::format("{} measured, {} from the journal; {:.1f} TFLOP replayed in {}",
                              sweep.summary.full_measured, sweep.summary.resumed, sweep.summary.replay_flops / 1e12,
                              format_seconds(sweep.summary.replay_s)));
    return 0;
}

}  // namespace cerebellum::cli
