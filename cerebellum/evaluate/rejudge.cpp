#include "cerebellum/evaluate/rejudge.h"

#include <fmt/format.h>

#include "cerebellum/core/error.h"
#include "cerebellum/core/json_text.h"

namespace cerebellum {

namespace {

double score_of(const AuditFile& log) {
    double right = 0.0;
    for (const auto& record : log.records) right += record.value("correct", false) ? 1.0 : 0.0;
    return log.records.empty() ? 0.0 : right / static_cast<double>(log.records.size());
}

}  // namespace

Rejudgement rejudge(AuditFile& log, const std::function<void(nlohmann::json&)>& judge) {
    Rejudgement result;
    result.old_score = score_of(log);
    for (auto& record : log.records) {
        const auto id = record["id"].get<std::string>();
        if (!record.contains("raw"))
            throw Error(
                fmt::format("question '{}' has no raw answer; only chats and programs can be judged again", id));
        const auto before = record;
        read_fields(fmt::format("question '{}'", id), [&] { judge(record); });
        if (record["parsed"] != before.value("parsed", "") || record["correct"] != before.value("correct", false))
            result.changed.push_back(id);
    }
    result.new_score = score_of(log);
    return result;
}

}  // namespace cerebellum
