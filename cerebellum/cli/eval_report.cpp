#include "cerebellum/cli/eval_report.h"

#include <fmt/format.h>

#include <set>

#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/hash.h"
#include "cerebellum/gguf/gguf_file.h"
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

std::vector<std::string> row_of(const EvaluatedFile& file, const std::string& metric, const AuditFile& first,
                                bool is_first, nlohmann::json& json) {
    const auto metrics = summarise_metrics(file.answers.records);
    const auto at = metrics.find(metric);
    if (at == metrics.end()) return {};
    const auto& m = at->second;
    std::vector<std::string> row = {model_name(file.answers),
                                    metric,
                                    std::to_string(m.questions),
                                    percent(m.mean),
                                    fmt::format("{} - {}", percent(m.interval.low), percent(m.interval.high)),
                                    "",
                                    ""};
    if (is_first) return row;
    const auto paired = compare_metrics(file.answers, first);
    if (const auto found = paired.find(metric); found != paired.end()) {
        const auto& p = found->second;
        row[5] = fmt::format("+{} -{}", p.only_first, p.only_second);
        row[6] = fmt::format("{:.3g}", p.p);
        json["against_first"][metric] = {
            {"questions", p.questions}, {"won", p.only_first}, {"lost", p.only_second}, {"mcnemar_p", p.p}};
    }
    return row;
}

}  // namespace

nlohmann::json model_identity(const fs::path& path, Progress& progress) {
    const auto file = GgufFile::open(path);
    progress.begin("hashing the file", static_cast<double>(file.file_size()));
    auto hash = sha256_of_file(path, [&](std::uint64_t done) {
        progress.check();
        progress.advance(static_cast<double>(done), path.filename().string());
    });
    progress.end();
    return {{"file", path.filename().string()}, {"bytes", file.file_size()}, {"sha256", std::move(hash)}};
}

fs::path log_path(const std::string& out, const std::string& benchmark, const nlohmann::json& model) {
    std::error_code error;
    fs::create_directories(out, error);
    if (error) throw Error(fmt::format("cannot make the folder {}: {}", out, error.message()));
    const auto stem = fs::path(model["file"].get<std::string>()).stem().string();
    return fs::path(out) /
           fmt::format("{}.{}.{}.jsonl", benchmark, stem, model["sha256"].get<std::string>().substr(0, 8));
}

fs::path summary_path(const fs::path& log) {
    auto path = log;
    return path.replace_extension(".summary.json");
}

int report_evaluations(const std::vector<EvaluatedFile>& files, bool json, Progress& progress) {
    int code = 0;
    auto result = nlohmann::json::array();
    std::vector<std::vector<std::string>> rows;
    for (std::size_t i = 0; i < files.size(); ++i) {
        auto summary = nlohmann::json::object();
        try {
            summary = make_summary(files[i].answers);
            write_file_atomically(summary_path(files[i].log), summary.dump(2) + "\n");
        } catch (const Error& refusal) {
            std::error_code ignored;
            fs::remove(summary_path(files[i].log), ignored);  // of an earlier state
            progress.warn(fmt::format("{}: {}", model_name(files[i].answers), refusal.what()));
            summary = files[i].answers.header;
            summary["not_published"] = refusal.what();
            code = 1;
        }
        summary["log"] = files[i].log.string();
        std::set<std::string> metrics;
        for (const auto& record : files[i].answers.records)
            for (const auto& [name, value] : record["metrics"].items()) metrics.insert(name);
        for (const auto& metric : metrics)
            if (auto row = row_of(files[i], metric, files.front().answers, i == 0, summary); !row.empty())
                rows.push_back(std::move(row));
        result.push_back(std::move(summary));
    }
    if (json)
        fmt::print("{}\n", result.dump(2));
    else
        fmt::print("{}", format_table({"file", "metric", "questions", "score %", "95 %", "vs first", "p"}, rows));
    return code;
}

}  // namespace cerebellum::cli
