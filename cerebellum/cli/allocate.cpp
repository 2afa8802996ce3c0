#include <fmt/format.h>

#include <chrono>
#include <nlohmann/json.hpp>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/cli/allocate_imported.h"
#include "cerebellum/cli/commands.h"
#include "cerebellum/cli/goal_options.h"
#include "cerebellum/cli/options.h"
#include "cerebellum/cli/terminal.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/size.h"
#include "cerebellum/pipeline/measured_model.h"
#include "cerebellum/pipeline/quantize.h"
#include "cerebellum/pipeline/run_files.h"
#include "cerebellum/pipeline/unusable.h"
#include "cerebellum/pipeline/whole_prediction.h"
#include "cerebellum/report/table.h"

namespace cerebellum::cli {

namespace {

std::string describe(const GgufFile& source, const Recipe& recipe) {
    std::map<std::string, std::pair<int, std::uint64_t>> by_type;
    for (const auto& [name, type] : recipe.types) {
        auto& [count, bytes] = by_type[type_name(type)];
        ++count;
        bytes += tensor_bytes(*source.find(name), type.type);
    }
    std::vector<std::vector<std::string>> rows;
    for (const auto& [type, entry] : by_type)
        rows.push_back({type, std::to_string(entry.first), format_bytes(entry.second)});
    return format_table({"type", "tensors", "bytes"}, rows);
}

}  // namespace

Command add_allocate(CLI::App& app) {
    struct Values {
        CommonOptions common;
        GoalOptions goal;
        ConstraintOptions constraints;
        ImportedValues imported;
        std::string output;
    };
    auto values = std::make_shared<Values>();
    auto* command =
        app.add_subcommand("allocate", "Only allocate: a recipe for a size, from the journal's measurements");
    command->footer(
        "Examples:\n  cerebellum allocate model-f16.gguf --size 3.5bpw -o recipe.json\n"
        "  cerebellum allocate model-f16.gguf --max-kld 0.02 --pin token_embd=q8_0 --couple qkv -o recipe.json\n"
        "  cerebellum allocate model-f16.gguf --vram 12GiB --serve-ctx 16384 --kv q8_0 --parallel 4 -o recipe.json\n"
        "  cerebellum allocate --ablation ablation_results.json --budget 12.0 --output tensor_types.txt\n\n"
        "Takes well under a second; the model is read once for its digest, which is remembered.");
    add_imported(*command, values->common, values->imported);
    command
        ->add_option("--journal", values->common.journal,
                     "The journal with the measurements (default: in this folder, named after the model)")
        ->type_name("FILE");
    add_chosen_rounding(*command, values->common);
    add_output(*command, values->common, values->output,
               "The recipe (JSON); a llama-quantize type file and the importance matrix go beside it");
    add_goal(*command, values->goal);
    command->add_option("--ctx", values->common.context, "Older name of --serve-ctx")->check(CLI::PositiveNumber);
    add_constraints(*command, values->constraints);
    add_aim(*command, values->common);
    add_threads(*command, values->common);
    add_json(*command, values->common);
    return [values] {
        if (values->imported.wanted()) {
            if (!values->constraints.empty() || values->common.objective != "kld" || !values->common.profile.empty())
                throw UsageError(
                    "imported measurements are allocated without constraints, objectives and profiles; leave these "
                    "options out, or measure the model with 'cerebellum ablate'");
            return allocate_from_import(values->common, values->imported, values->goal, values->output);
        }
        if (values->common.model.empty()) throw UsageError("model is required; see 'cerebellum allocate --help'");
        if (!values->imported.budget_gb.empty())
            throw UsageError("--budget is for --ablation and --sensitivity; give --size");
        TerminalProgress progress(values->common.quiet, values->common.verbose);
        settle_contexts(values->goal, values->common.context, 0, progress);
        AllocationRequest request{goal_of(values->goal), {}};
        const std::filesystem::path output = values->output;
        const auto aim = aim_of(values->common);
        request.constraints = constraints_of(values->constraints, values->common.threads);
        const auto journal = values->common.journal.empty() ? default_journal(values->common.model, "")
                                                            : std::filesystem::path(values->common.journal);
        OutputGuard guard(values->common.force);
        guard.writes("the recipe", output).writes("the type file beside the recipe", type_file_path(output));
        guard_model(guard, "the model", values->common.model);
        guard_journal(guard, journal);
        guard.check();
        const auto measured = open_measured(values->common.model, journal, aim);
        warn_of_unusable(measured.journal, progress);
        if (measured.imatrix) guard.writes("the importance matrix beside the recipe", imatrix_path(output));
        const auto lock = guard.lock();
        const auto started = std::chrono::steady_clock::now();
        const auto solved = solve_calibrated_goal(measured.source, measured.problem, request,
                                                  make_calibration(measured.problem, measured.journal, aim));
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
        const auto recipe = make_recipe(measured.source, measured.journal, solved, aim);
        write_recipe(output, recipe);
        write_file_atomically(type_file_path(output), tensor_type_file(complete_types(measured.source, recipe.types)));
        if (measured.imatrix) write_imatrix(imatrix_path(output), *measured.imatrix);
        if (values->common.json) {
            fmt::print("{}\n", recipe_to_json(recipe));
            return 0;
        }
        const auto calibrated = [&] {
            const auto value = recipe.provenance.find("calibrated_kld");
            if (value == recipe.provenance.end()) return std::string();
            const auto& error = recipe.provenance.at("calibrated_kld_error");
            return fmt::format(", {}{} after calibration by whole recipes", value->second,
                               error == "nan" ? std::string() : " ± " + error);
        };
        fmt::print(
            "{}\n{} bytes, {:.2f} % of {}; predicted KLD {:.5f} nats per token{} ({}, lower bound {:.5f}); solved in "
            "{:.3f} s\n",
            describe(measured.source, recipe), recipe.file_bytes,
            100.0 * static_cast<double>(recipe.file_bytes) / static_cast<double>(solved.budget_bytes),
            solved.budget_bytes, recipe.predicted_kld, calibrated(),
            solved.allocation.exact ? "optimal" : "not proved optimal", solved.allocation.lower_bound, seconds);
        for (const auto& remark : solved.remarks) fmt::print("{}\n", remark);
        return 0;
    };
}

}  // namespace cerebellum::cli
