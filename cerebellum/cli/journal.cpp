#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <set>

#include "cerebellum/cli/commands.h"
#include "cerebellum/cli/options.h"
#include "cerebellum/cli/terminal.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/hash.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/size.h"
#include "cerebellum/core/visible_text.h"
#include "cerebellum/journal/digest.h"
#include "cerebellum/journal/journal.h"
#include "cerebellum/journal/merge.h"
#include "cerebellum/report/table.h"

namespace cerebellum::cli {

namespace {

struct Values {
    CommonOptions common;
    std::string output;
    std::vector<std::string> inputs;
};

int merge(const Values& values) {
    TerminalProgress progress(values.common.quiet, values.common.verbose);
    const std::vector<std::filesystem::path> inputs(values.inputs.begin(), values.inputs.end());
    const auto reports = merge_journals(values.output, inputs);
    const auto journal = Journal::open_existing(values.output);
    const auto rows = journal.measurements();
    if (values.common.json) {
        auto merged = nlohmann::json::array();
        for (const auto& report : reports)
            merged.push_back({{"journal", report.path.string()},
                              {"added", report.added},
                              {"extended", report.extended},
                              {"duplicate", report.duplicate}});
        fmt::print("{}\n", json_to_text(nlohmann::json{{"output", values.output},
                                                       {"measurements", rows.size()},
                                                       {"sha256", measurements_sha256(journal)},
                                                       {"merged", merged}},
                                        2));
        return 0;
    }
    std::vector<std::vector<std::string>> table;
    for (const auto& report : reports)
        table.push_back({report.path.string(), std::to_string(report.added), std::to_string(report.extended),
                         std::to_string(report.duplicate)});
    fmt::print("{}\n{}: {} measurements\n", format_table({"journal", "added", "extended", "duplicate"}, table),
               visible(values.output), rows.size());
    return 0;
}

/// What a journal holds, in numbers.
struct Summary {
    std::size_t fast = 0, full = 0;
    std::set<std::string> tensors, types;
    std::size_t most_windows = 0;
    double wall_s = 0.0;
    std::map<std::string, std::size_t> mixes;  // by part
};

Summary summarize(const std::vector<Measurement>& rows, const std::vector<MixMeasurement>& mixes) {
    Summary summary;
    for (const auto& row : rows) {
        ++(row.tier == Tier::fast ? summary.fast : summary.full);
        summary.tensors.insert(row.tensor);
        summary.types.insert(row.type);
        summary.most_windows = std::max(summary.most_windows, row.windows());
        summary.wall_s += row.wall_s;
    }
    for (const auto& mix : mixes) {
        ++summary.mixes[mix.part];
        summary.wall_s += mix.wall_s;
    }
    return summary;
}

int show(const Values& values) {
    const auto journal = Journal::open_existing(values.inputs.front());
    const auto rows = journal.measurements();
    const auto summary = summarize(rows, journal.mixes());
    const auto digest = measurements_sha256(journal);
    auto artifacts = nlohmann::json::object();
    for (const auto& name : journal.artifact_names()) {
        const auto bytes = journal.get_artifact(name);
        artifacts[name] = {{"bytes", bytes->size()}, {"sha256", sha256(*bytes)}};
    }
    if (values.common.json) {
        const nlohmann::json shown = {{"journal", values.inputs.front()},
                                      {"identity", journal.identity().fields},
                                      {"remarks", journal.meta()},
                                      {"artifacts", artifacts},
                                      {"fast", summary.fast},
                                      {"full", summary.full},
                                      {"unusable", journal.unusable().size()},
                                      {"tensors", summary.tensors.size()},
                                      {"types", summary.types},
                                      {"windows", summary.most_windows},
                                      {"mixes", summary.mixes},
                                      {"measured_s", summary.wall_s},
                                      {"sha256", digest}};
        fmt::print("{}\n", visible_lines(json_to_text(shown, 2)));
        return 0;
    }
    std::vector<std::vector<std::string>> table;
    for (const auto& [field, value] : journal.identity().fields) table.push_back({field, value});
    fmt::print("{}\n", format_table({"settings", ""}, table));
    table.clear();
    table.push_back({"fast measurements", std::to_string(summary.fast)});
    table.push_back({"full measurements", std::to_string(summary.full)});
    if (const auto unusable = journal.unusable().size(); unusable > 0)
        table.push_back({"unusable figures", std::to_string(unusable)});
    table.push_back({"tensors", std::to_string(summary.tensors.size())});
    table.push_back({"types", std::to_string(summary.types.size())});
    table.push_back({"windows, at most", std::to_string(summary.most_windows)});
    for (const auto& [part, count] : summary.mixes)
        table.push_back({fmt::format("mixes on '{}'", part), std::to_string(count)});
    table.push_back({"time that they took", format_seconds(summary.wall_s)});
    for (const auto& [name, facts] : artifacts.items())
        table.push_back({fmt::format("artifact '{}'", name), format_bytes(facts["bytes"].get<std::uint64_t>())});
    table.push_back({"SHA-256 of the figures", digest});
    fmt::print("{}", format_table({"contents", ""}, table));
    return 0;
}

}  // namespace

Command add_journal(CLI::App& app) {
    auto values = std::make_shared<Values>();
    auto* command = app.add_subcommand("journal", "Merge and show journals");
    command->require_subcommand(1);
    command->footer(
        "Examples:\n"
        "  cerebellum journal merge all.db shard-*.db\n"
        "  cerebellum journal show all.db");

    auto* merging = command->add_subcommand("merge", "Of several journals of the same settings, such as shards");
    merging->footer(
        "The output is created, or added to where it is a journal already. Measurements that several journals hold "
        "must\n"
        "agree. Where anything differs, settings, text or figures, the output stays as it was.");
    merging->add_option("output", values->output, "The journal that has everything afterwards")
        ->required()
        ->type_name("OUT");
    merging->add_option("inputs", values->inputs, "Journals; they are only read")->required()->type_name("JOURNAL");
    add_json(*merging, values->common);

    auto* showing = command->add_subcommand("show", "A journal's settings and how much it holds");
    showing->footer("Journals with the same SHA-256 hold the same figures, in whatever order they were measured.");
    showing->add_option("input", values->inputs, "A journal")->required()->expected(1)->type_name("JOURNAL");
    add_json(*showing, values->common);

    return [values, merging] { return merging->parsed() ? merge(*values) : show(*values); };
}

}  // namespace cerebellum::cli
