#include "cerebellum/cli/eval_report.h"

#include <fmt/format.h>

#include <map>
#include <optional>

#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/output_guard.h"
#include "cerebellum/core/visible_text.h"
#include "cerebellum/report/table.h"

namespace cerebellum::cli {

namespace fs = std::filesystem;

namespace {

std::string percent(double share) {
    return fmt::format("{:.2f}", 100.0 * share);
}

std::string model_name(const AuditFile& answers) {
    std::string name = answers.header.contains("model") ? answers.header["model"].value("file", "?") : "?";
    if (const double temperature = answers.header.value("temperature", 0.0); temperature > 0.0)
        name += fmt::format(" at {:g}", temperature);
    return name;
}

struct Row {
    std::string metric;
    MetricSummary score;
    std::optional<PairedMetric> paired;  // with the first file
    bool differs = false;                // significantly
};

/// A row for each metric of the file.
std::vector<Row> rows_of(const EvaluatedFile& file, const EvaluatedFile& first) {
    std::vector<Row> rows;
    for (const auto& [metric, score] : summarise_metrics(file.answers.records))
        rows.push_back({metric, score, std::nullopt, false});
    if (&file == &first) return rows;
    const auto paired = compare_metrics(file.answers, first.answers);
    for (auto& row : rows)
        if (const auto at = paired.find(row.metric); at != paired.end()) row.paired = at->second;
    return rows;
}

/// Marks the differences from the first file that are significant among all comparisons of the same metric.
void mark_significant(std::vector<std::vector<Row>>& rows) {
    std::map<std::string, std::vector<Row*>> compared;
    for (auto& of_file : rows)
        for (auto& row : of_file)
            if (row.paired) compared[row.metric].push_back(&row);
    for (auto& [metric, all] : compared) {
        std::vector<double> p_values;
        for (const auto* row : all) p_values.push_back(row->paired->p);
        const auto differs = significant(p_values);
        for (std::size_t i = 0; i < all.size(); ++i) all[i]->differs = differs[i];
    }
}

std::vector<std::string> cells_of(const std::string& name, const Row& row) {
    std::vector<std::string> cells = {
        name,
        row.metric,
        std::to_string(row.score.questions),
        percent(row.score.mean),
        fmt::format("{} - {}", percent(row.score.interval.lower), percent(row.score.interval.upper)),
        "",
        "",
        ""};
    if (!row.paired) return cells;
    cells[5] = fmt::format("+{} -{}", row.paired->only_first, row.paired->only_second);
    cells[6] = fmt::format("{:.3g}", row.paired->p);
    cells[7] = row.differs ? "differs" : "";
    return cells;
}

nlohmann::json paired_json(const Row& row) {
    return {{"questions", row.paired->questions},
            {"won", row.paired->only_first},
            {"lost", row.paired->only_second},
            {"mcnemar_p", row.paired->p},
            {"significant", row.differs}};
}

}  // namespace

fs::path log_path(const std::string& out, const std::string& benchmark, const nlohmann::json& model,
                  const fs::path& questions) {
    std::error_code error;
    fs::create_directories(out, error);
    if (error) throw Error(fmt::format("cannot make the folder {}: {}", out, error.message()));
    auto stem = fs::path(model["file"].get<std::string>()).stem().string();
    if (model["sha256"] == "unknown") stem = file_name_from(stem);  // what a server calls it
    auto log =
        fs::path(out) / fmt::format("{}.{}.{}.jsonl", benchmark, stem, model["sha256"].get<std::string>().substr(0, 8));
    OutputGuard guard(true);
    guard.reads("the questions", questions).updates("the answers", log).updates("the summary", summary_path(log));
    guard.updates("the samples", samples_path(log)).check_apart();
    return log;
}

fs::path summary_path(const fs::path& log) {
    auto path = log;
    return path.replace_extension(".summary.json");
}

fs::path samples_path(const fs::path& log) {
    auto path = log;
    return path.replace_extension(".samples.jsonl");
}

Publication publish_summary(const fs::path& log, const AuditFile& answers) {
    try {
        Publication published{make_summary(answers), ""};
        write_file_atomically(summary_path(log), json_to_text(published.summary, 2) + "\n");
        return published;
    } catch (const Error& refusal) {
        std::error_code ignored;
        fs::remove(summary_path(log), ignored);
        return {answers.header, refusal.what()};
    }
}

int report_evaluations(const std::vector<EvaluatedFile>& files, bool json, Progress& progress) {
    int code = 0;
    std::vector<Publication> published;
    for (const auto& file : files) {
        published.push_back(publish_summary(file.log, file.answers));
        if (published.back().refusal.empty()) continue;
        progress.warn(fmt::format("{}: {}", model_name(file.answers), published.back().refusal));
        published.back().summary["not_published"] = published.back().refusal;
        code = 1;
    }
    std::vector<std::vector<Row>> rows;
    for (const auto& file : files) rows.push_back(rows_of(file, files.front()));
    mark_significant(rows);
    auto result = nlohmann::json::array();
    std::vector<std::vector<std::string>> cells;
    for (std::size_t i = 0; i < files.size(); ++i) {
        auto& summary = published[i].summary;
        summary["log"] = files[i].log.string();
        for (const auto& row : rows[i]) {
            if (row.paired) summary["against_first"][row.metric] = paired_json(row);
            cells.push_back(cells_of(model_name(files[i].answers), row));
        }
        result.push_back(std::move(summary));
    }
    if (json) {
        fmt::print("{}\n", visible_lines(json_to_text(result, 2)));
        return code;
    }
    fmt::print("{}", format_table({"file", "metric", "questions", "score %", "95 %", "vs first", "p", ""}, cells));
    if (files.size() > 1)
        fmt::print(
            "vs first: questions won and lost; p: McNemar's exact test; differs: below 5 % after Holm's adjustment\n");
    return code;
}

}  // namespace cerebellum::cli
