#include "cerebellum/evaluate/eval_summary.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cerebellum/core/error.h"
#include "cerebellum/core/hash.h"

namespace cerebellum {

namespace {

using nlohmann::json;

bool is_binary(double value) {
    return value == 0.0 || value == 1.0;
}

MetricSummary summarise(const std::vector<double>& values) {
    MetricSummary summary;
    summary.questions = static_cast<int>(values.size());
    double sum = 0.0, squares = 0.0;
    for (const double value : values) {
        sum += value;
        squares += value * value;
        summary.binary &= is_binary(value);
    }
    const auto n = static_cast<double>(values.size());
    summary.mean = sum / n;
    if (summary.binary) {
        summary.interval = wilson_interval(static_cast<int>(sum), summary.questions);
    } else {
        constexpr double z = 1.959963984540054;
        const double half = z * std::sqrt(std::max(0.0, squares / n - summary.mean * summary.mean) / (n - 1.0));
        summary.interval = {summary.mean - half, summary.mean + half};
    }
    return summary;
}

bool is_blank(const std::string& text) {
    return text.find_first_not_of(" \t\r\n") == std::string::npos;
}

/// Of all prompts, in whatever order they were asked.
std::string prompts_hash(const AuditFile& log) {
    std::map<std::string, std::string> prompts;
    for (const auto& record : log.records)
        prompts.emplace(record["id"].get<std::string>(), record.value("prompt_sha256", ""));
    Sha256 hash;
    for (const auto& [id, prompt] : prompts) hash.update(fmt::format("{}\n{}\n", id, prompt));
    return hash.finish();
}

json metrics_json(const std::map<std::string, MetricSummary>& metrics) {
    auto result = json::object();
    for (const auto& [name, metric] : metrics)
        result[name] = {{"score", metric.mean},
                        {"interval95", {metric.interval.lower, metric.interval.upper}},
                        {"interval", metric.binary ? "wilson" : "normal"},
                        {"questions", metric.questions}};
    return result;
}

}  // namespace

double AuditFindings::unparsed_share() const {
    return questions == 0 ? 0.0 : static_cast<double>(unparsed.size() + empty.size()) / questions;
}

std::map<std::string, MetricSummary> summarise_metrics(const std::vector<json>& records) {
    std::map<std::string, std::vector<double>> values;
    for (const auto& record : records)
        for (const auto& [name, value] : record.at("metrics").items()) values[name].push_back(value.get<double>());
    std::map<std::string, MetricSummary> result;
    for (const auto& [name, all] : values) result.emplace(name, summarise(all));
    return result;
}

std::map<std::string, PairedMetric> compare_metrics(const AuditFile& first, const AuditFile& second) {
    std::map<std::string, const json*> others;
    for (const auto& record : second.records) others.emplace(record["id"].get<std::string>(), &record);
    std::map<std::string, PairedMetric> result;
    std::map<std::string, bool> graded;
    for (const auto& record : first.records) {
        const auto id = record["id"].get<std::string>();
        const auto other = others.find(id);
        if (other == others.end()) continue;
        if (record.value("prompt_sha256", "") != other->second->value("prompt_sha256", ""))
            throw Error(
                fmt::format("the files were asked question '{}' in different words, so their answers cannot be "
                            "compared; repeat one of the runs",
                            id));
        for (const auto& [name, value] : record["metrics"].items()) {
            if (!(*other->second)["metrics"].contains(name)) continue;
            const double a = value.get<double>(), b = (*other->second)["metrics"][name].get<double>();
            graded[name] |= !is_binary(a) || !is_binary(b);
            auto& paired = result[name];
            ++paired.questions;
            paired.only_first += a > b ? 1 : 0;
            paired.only_second += b > a ? 1 : 0;
        }
    }
    for (const auto& [name, is_graded] : graded)
        if (is_graded) result.erase(name);
    for (auto& [name, paired] : result) paired.p = mcnemar_p(paired.only_first, paired.only_second);
    return result;
}

std::vector<bool> significant(std::span<const double> p_values) {
    std::vector<bool> result;
    for (const double p : adjust_holm(p_values)) result.push_back(p < 0.05);
    return result;
}

AuditFindings audit(const AuditFile& log) {
    AuditFindings findings;
    findings.questions = static_cast<int>(log.records.size());
    for (const auto& record : log.records) {
        const auto id = record["id"].get<std::string>();
        const auto raw = record.value("raw", std::string("-"));
        if (is_blank(raw))
            findings.empty.push_back(id);
        else if (record.value("parsed", std::string()).empty())
            findings.unparsed.push_back(id);
        if (record.contains("raw") && !is_blank(raw) && !record.value("correct", false) && raw.size() > 3)
            findings.identical_wrong[raw].push_back(id);
    }
    std::erase_if(findings.identical_wrong, [](const auto& cluster) { return cluster.second.size() < 3; });
    return findings;
}

json make_summary(const AuditFile& log) {
    const auto expected = log.header.value("questions", static_cast<int>(log.records.size()));
    if (static_cast<int>(log.records.size()) != expected)
        throw Error(fmt::format("{} of {} questions have been asked; run the same command again to ask the others",
                                log.records.size(), expected));
    const auto findings = audit(log);
    if (findings.unparsed_share() > publishable_unparsed_share)
        throw Error(fmt::format(
            "{} of {} answers are empty or could not be parsed (limit {:.1f} %), so no score is "
            "published; see 'cerebellum eval audit', then 'cerebellum eval rejudge'",
            findings.unparsed.size() + findings.empty.size(), findings.questions, 100.0 * publishable_unparsed_share));
    auto summary = log.header;
    summary["format"] = "cerebellum-eval-summary";
    summary["prompts_sha256"] = prompts_hash(log);
    summary["metrics"] = metrics_json(summarise_metrics(log.records));
    summary["unparsed"] = findings.unparsed.size();
    summary["empty"] = findings.empty.size();
    std::map<std::string, std::vector<json>> groups;
    double milliseconds = 0.0;
    for (const auto& record : log.records) {
        if (const auto group = record.value("group", ""); !group.empty()) groups[group].push_back(record);
        milliseconds += record.value("ms", 0.0);
    }
    summary["seconds"] = milliseconds / 1000.0;
    for (const auto& [name, records] : groups) summary["groups"][name] = metrics_json(summarise_metrics(records));
    return summary;
}

}  // namespace cerebellum
