#include "cerebellum/evaluate/chat_choice.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cerebellum/core/error.h"
#include "cerebellum/core/hash.h"
#include "cerebellum/evaluate/answer_parser.h"
#include "cerebellum/evaluate/choice_prompts.h"

namespace cerebellum {

namespace {

using nlohmann::json;

const char* request_of(Benchmark benchmark) {
    switch (benchmark) {
        case Benchmark::hellaswag:
            return "Which of the endings continues the text best?";
        case Benchmark::winogrande:
            return "Which of the options belongs in the place of the underscore?";
        default:
            return "Which of the choices is correct?";
    }
}

}  // namespace

std::string chat_prompt(Benchmark benchmark, const Question& question) {
    if (question.right.size() != 1)
        throw UsageError(fmt::format(
            "question '{}' has several right answers, which a chat cannot be asked for a letter of", question.id));
    auto prompt = question.text + "\n\n";
    for (std::size_t i = 0; i < question.choices.size(); ++i)
        prompt += fmt::format("{}. {}\n", letter_of(static_cast<int>(i)), question.choices[i]);
    return prompt + fmt::format("\n{} Answer with its letter only.", request_of(benchmark));
}

json chat_record(const Question& question, const std::string& prompt, const ChatReply& reply) {
    json record = {{"id", question.id},
                   {"prompt_sha256", sha256(prompt)},
                   {"raw", reply.text},
                   {"finish", reply.finish},
                   {"choices", question.choices},
                   {"gold", {letter_of(question.right.front())}},
                   {"prompt_tokens", reply.prompt_tokens},
                   {"completion_tokens", reply.completion_tokens},
                   {"ms", std::round(reply.milliseconds)}};
    if (!reply.reasoning.empty()) record["reasoning"] = reply.reasoning;
    if (!reply.failure.empty()) record["failed"] = reply.failure;
    if (!question.group.empty()) record["group"] = question.group;
    judge_choice(record);
    return record;
}

void judge_choice(json& record) {
    const auto choices = record.at("choices").get<std::vector<std::string>>();
    const auto index = parse_choice(record.at("raw").get<std::string>(), choices);
    const auto parsed = index ? letter_of(*index) : std::string();
    const auto& gold = record.at("gold");
    const bool right = index && std::ranges::find(gold, json(parsed)) != gold.end();
    record["parsed"] = parsed;
    record["correct"] = right;
    record["metrics"] = {{"acc", right ? 1.0 : 0.0}};
}

}  // namespace cerebellum
