#pragma once

#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "cerebellum/core/progress.h"
#include "cerebellum/evaluate/choice_prompts.h"
#include "cerebellum/evaluate/questions.h"
#include "cerebellum/llama/model.h"

namespace cerebellum {

/// How a file answered a multiple-choice question by the probabilities of its choices.
struct ChoiceScore {
    std::string prompt_sha256;             // of all contexts and continuations
    std::vector<double> log_probs;         // of each continuation behind its context, nats
    std::vector<int> token_counts;         // of the continuations
    std::map<std::string, int> picks;      // metric → choice
    std::map<std::string, double> values;  // metric → 1 right, 0 wrong; mc2: the probability of the true answers
    double milliseconds = 0.0;             // its share of the batch it was in
};

/// acc: the most probable continuation. acc_norm: the most probable one per character. llama_perplexity: the choice of
/// its --hellaswag and --winogrande. mc2: see ChoiceScore.
std::vector<std::string> choice_metrics(Benchmark benchmark);
/// The metric that published scores of the benchmark are.
std::string headline_metric(Benchmark benchmark);

struct ChoiceSettings {
    Benchmark benchmark = Benchmark::choice;
    int shots = 0;
    int threads = 1;
    bool share_prefixes = true;
};

/// Scores the questions in their order; `done(i, score)` is called for each, in that order, a batch at a time. The
/// arithmetic of the choices is the harness's: the continuation's tokens are those of context + continuation behind as
/// many as the context alone has; sums of log-probabilities over the whole vocabulary.
void score_choices(const Model& model, std::span<const Question> questions, std::span<const Question> examples,
                   const ChoiceSettings& settings, const std::function<void(std::size_t, const ChoiceScore&)>& done,
                   Progress& progress);

}  // namespace cerebellum
