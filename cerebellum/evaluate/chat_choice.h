#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "cerebellum/evaluate/chat_client.h"
#include "cerebellum/evaluate/questions.h"

namespace cerebellum {

/// A multiple-choice question as a user asks it in a chat: lettered choices, and the request to answer with a letter.
/// Throws UsageError for benchmarks that have no single right answer.
std::string chat_prompt(Benchmark benchmark, const Question& question);

/// The record of an answer for the audit log: the raw answer, what the parser made of it, and all that judging it again
/// takes.
nlohmann::json chat_record(const Question& question, const std::string& prompt, const ChatReply& reply);

/// Sets "parsed", "correct" and "metrics" of a chat's record from its "raw", "choices" and "gold", by this version's
/// parser.
void judge_choice(nlohmann::json& record);

}  // namespace cerebellum
