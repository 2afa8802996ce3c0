#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "cerebellum/evaluate/audit_log.h"
#include "cerebellum/evaluate/chat_client.h"
#include "cerebellum/evaluate/questions.h"

namespace cerebellum {

/// A multiple-choice question as a user asks it in a chat: lettered choices, and the request to answer with a letter.
/// Throws UsageError for benchmarks that have no single right answer.
std::string chat_prompt(Benchmark benchmark, const Question& question);

/// The record of an answer for an AuditLog: the raw answer, what the parser made of it, and all that judging it again
/// takes.
nlohmann::json chat_record(const Question& question, const std::string& prompt, const ChatReply& reply);

/// Applies the parser of this version to the raw answers. Returns the changed records' ids.
struct Rejudgement {
    std::vector<std::string> changed;
    double old_score = 0.0;
    double new_score = 0.0;
};
Rejudgement rejudge(AuditFile& log);

}  // namespace cerebellum
