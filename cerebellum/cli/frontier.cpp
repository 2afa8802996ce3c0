#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cerebellum/cli/commands.h"
#include "cerebellum/cli/goal_options.h"
#include "cerebellum/cli/options.h"
#include "cerebellum/cli/terminal.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/size.h"
#include "cerebellum/pipeline/frontier_report.h"
#include "cerebellum/pipeline/run_files.h"
#include "cerebellum/pipeline/unusable.h"
#include "cerebellum/report/table.h"

namespace cerebellum::cli {

namespace {

/// So many sizes evenly over the frontier, the knees and the stock mixes, in rising size.
std::string describe(const FrontierReport& report, const GgufFile& source) {
    struct Line {
        std::uint64_t bytes;
        double kld;
        std::string note;
    };
    constexpr std::size_t sizes = 24;
    std::vector<Line> lines;
    const auto& points = report.points;
    std::vector<std::size_t> shown = report.knees;
    const auto first = static_cast<double>(points.front().file_bytes),
               last = static_cast<double>(points.back().file_bytes);
    for (std::size_t i = 0; i < sizes; ++i) {
        const double size = first + (last - first) * static_cast<double>(i) / static_cast<double>(sizes - 1);
        const auto above = std::ranges::upper_bound(points, static_cast<std::uint64_t>(size), {},
                                                    [](const auto& point) { return point.file_bytes; });
        shown.push_back(above == points.begin() ? 0 : static_cast<std::size_t>(above - points.begin()) - 1);
    }
    std::ranges::sort(shown);
    shown.erase(std::unique(shown.begin(), shown.end()), shown.end());
    for (const auto i : shown)
        lines.push_back({points[i].file_bytes, points[i].cost,
                         std::ranges::find(report.knees, i) != report.knees.end() ? "<- knee" : ""});
    for (const auto& preset : report.presets) {
        if (!preset.kld) continue;
        std::string note = preset.name;
        if (preset.frontier_kld) note += fmt::format(" (frontier {:.5f})", *preset.frontier_kld);
        if (preset.unmeasured > 0) note += fmt::format(", {} of its tensors unmeasured", preset.unmeasured);
        lines.push_back({preset.bytes, *preset.kld, note});
    }
    std::ranges::stable_sort(lines, {}, &Line::bytes);
    std::vector<std::vector<std::string>> rows;
    for (const auto& line : lines)
        rows.push_back(
            {std::to_string(line.bytes), format_bytes(line.bytes),
             fmt::format("{:.3f}", 8.0 * static_cast<double>(line.bytes) / static_cast<double>(source.n_weights())),
             fmt::format("{:.5f}", line.kld), line.note});
    return format_table({"bytes", "size", "bpw", "predicted KLD", ""}, rows);
}

}  // namespace

Command add_frontier(CLI::App& app) {
    struct Values {
        CommonOptions common;
        ConstraintOptions constraints;
        std::string output;
    };
    auto values = std::make_shared<Values>();
    auto* command =
        app.add_subcommand("frontier", "Predicted damage of all sizes at once, from the journal's measurements");
    command->footer(
        "Example:\n  cerebellum frontier model-f16.gguf --journal model-f16.cerebellum.db\n\n"
        "Sizes where a byte begins to buy less are marked as knees; stock mixes stand where they would be. The file "
        "holds\n"
        "every step: which tensor takes which type, from the smallest file to the largest worth having.");
    add_model(*command, values->common);
    command
        ->add_option("--journal", values->common.journal,
                     "The journal with the measurements (default: in this folder, named after the model)")
        ->type_name("FILE");
    command
        ->add_option("-o,--output", values->output,
                     "Where the frontier (JSON) goes (default: beside the journal, named after the model, and made "
                     "again each time)")
        ->type_name("FILE");
    command->add_flag("--force", values->common.force, "Replace the output if it exists");
    add_constraints(*command, values->constraints);
    add_threads(*command, values->common);
    add_json(*command, values->common);
    return [values] {
        if (values->constraints.max_types > 0)
            throw UsageError(
                "--max-types: the files of a frontier differ in which types they use; use it with 'allocate'");
        const auto journal = values->common.journal.empty() ? default_journal(values->common.model, "")
                                                            : std::filesystem::path(values->common.journal);
        auto output = std::filesystem::path(values->output);
        if (output.empty())
            output = journal.parent_path() /
                     (std::filesystem::path(values->common.model).stem().string() + ".frontier.json");
        OutputGuard guard(values->common.force);
        guard_model(guard, "the model", values->common.model);
        guard_journal(guard, journal);
        // What has a name of our own is a view of the journal, and made again as that grows.
        if (values->output.empty())
            guard.updates("the frontier", output);
        else
            guard.writes("the frontier", output);
        guard.check();
        check_output_path(output, 0, true);
        const OutputLock lock(output);
        const auto measured = open_measured(values->common.model, journal);
        TerminalProgress progress(values->common.quiet, values->common.verbose);
        warn_of_unusable(measured.journal, progress);
        const auto report = make_frontier(measured, constraints_of(values->constraints, values->common.threads));
        const auto json = to_json(report, measured);
        write_file_atomically(output, json_to_text(json, 1) + "\n");
        if (values->common.json) {
            fmt::print("{}\n", json_to_text(json, 1));
            return 0;
        }
        fmt::print("{}\n", describe(report, measured.source));
        for (const auto knee : report.knees)
            fmt::print("Knee: {} bytes ({:.3f} bpw), predicted KLD {:.5f}; beyond it a byte buys markedly less.\n",
                       report.points[knee].file_bytes,
                       8.0 * static_cast<double>(report.points[knee].file_bytes) /
                           static_cast<double>(measured.source.n_weights()),
                       report.points[knee].cost);
        if (report.knees.empty()) fmt::print("No size stands out.\n");
        fmt::print("{} sizes, each the best file of at most its size, in {}.\n", report.points.size(), output.string());
        return 0;
    };
}

}  // namespace cerebellum::cli
