#pragma once

#include <span>
#include <string>
#include <vector>

#include "cerebellum/evaluate/questions.h"

namespace cerebellum {

/// A question as a model is asked it: what stands before each choice, and the choice as the text goes on with it.
struct ChoicePrompt {
    std::vector<std::string> contexts;       // one for all choices, or one each (WinoGrande)
    std::vector<std::string> continuations;  // with the blank in front

    const std::string& context(std::size_t choice) const {
        return contexts.size() == 1 ? contexts.front() : contexts[choice];
    }
};

/// The prompts of the community's evaluation harness (lm-evaluation-harness 0.4): ARC "Question: …\nAnswer:" and the
/// text of the choice; MMLU with lettered choices, a letter and the subject's description; WinoGrande's sentence with
/// an option in its gap, and the rest of the sentence; TruthfulQA behind its six fixed examples. `examples` are shown
/// in front, each with its answer, parted by an empty line.
ChoicePrompt make_choice_prompt(Benchmark benchmark, const Question& question, std::span<const Question> examples);

/// The first `count` examples of the question's group (of the file where there are no groups), without itself. Throws
/// UsageError where there are fewer.
std::vector<Question> examples_for(const Question& question, std::span<const Question> examples, int count);

/// "A" for 0.
std::string letter_of(int choice);

}  // namespace cerebellum
