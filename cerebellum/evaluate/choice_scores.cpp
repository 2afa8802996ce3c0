#include "cerebellum/evaluate/choice_scores.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "cerebellum/core/error.h"
#include "cerebellum/core/hash.h"
#include "cerebellum/core/parallel.h"
#include "cerebellum/core/visible_text.h"
#include "cerebellum/evaluate/llama_perplexity.h"
#include "cerebellum/evaluate/sequence_scorer.h"
#include "cerebellum/replay/score_kernels.h"

namespace cerebellum {

namespace {

/// A question as tokens: beside its SequenceTask.
struct Prepared {
    std::vector<int> starts;       // of each continuation, in tokens
    std::vector<int> characters;   // of each choice, without the blank in front
    std::vector<int> option_ends;  // WinoGrande: tokens of the sentence's beginning with the option
    std::string prompt_sha256;
};

int length_of(const ScoredSequence& sequence) {
    return static_cast<int>(sequence.tokens.size());
}

/// Tokens that all sequences begin with; never all of one.
int common_prefix(std::span<const ScoredSequence> sequences) {
    const auto& first = sequences.front().tokens;
    int length = length_of(sequences.front()) - 1;
    for (const auto& sequence : sequences) {
        const auto at = std::ranges::mismatch(first, sequence.tokens).in1;
        length = std::min({length, static_cast<int>(at - first.begin()), length_of(sequence) - 1});
    }
    return length;
}

int code_points(const std::string& text) {
    return static_cast<int>(
        std::ranges::count_if(text, [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; }));
}

/// The harness moves blanks at the end of a context to the continuation.
std::string without_trailing_blanks(const std::string& context) {
    return context.substr(0, context.find_last_not_of(" \t\r\n") + 1);
}

std::string hash_of(const ChoicePrompt& prompt) {
    Sha256 hash;
    for (const auto& text : prompt.contexts) hash.update(text + '\x1f');
    for (const auto& text : prompt.continuations) hash.update(text + '\x1e');
    return hash.finish();
}

/// The sentence with either option, as llama-perplexity --winogrande scores it: behind the harness's sequences, which
/// are the same but where the gap is followed by something else than a blank.
void add_llama_winogrande(const Model& model, const Question& question, Prepared& prepared, SequenceTask& task) {
    const auto gap = question.text.find('_');
    const auto before = question.text.substr(0, gap), behind = question.text.substr(gap + 1);
    std::vector<ScoredSequence> both;
    for (const auto& option : question.choices) {
        auto text = before + option;
        prepared.option_ends.push_back(static_cast<int>(model.tokenize_from_start(text).size()));
        text += behind;
        both.push_back({model.tokenize_from_start(text), 0, 0});
    }
    const int first_scored = std::min(common_prefix(both), *std::ranges::min_element(prepared.option_ends));
    for (std::size_t c = 0; c < both.size(); ++c) {
        both[c].first_row = std::max(0, first_scored - 1);
        both[c].last_row = length_of(both[c]) - (c == 0 ? 1 : 2);
        task.sequences.push_back(std::move(both[c]));
    }
}

/// Attention takes the square of the length in time: one question of a megabyte would keep a processor for days. What
/// is a little longer than what the model was trained for is the user's business.
void check_length(const Model& model, const Question& question, const ScoredSequence& sequence) {
    constexpr int always_allowed = 8192;
    const int most = std::max(model.trained_context(), always_allowed);
    if (length_of(sequence) > most)
        throw Error(fmt::format("question '{}' has {} tokens with its examples; the most are {}; leave it out",
                                cut_utf8(question.id, 100), length_of(sequence), most));
}

Prepared prepare(const Model& model, const Question& question, std::span<const Question> examples,
                 const ChoiceSettings& settings, SequenceTask& task) {
    const auto prompt =
        make_choice_prompt(settings.benchmark, question, examples_for(question, examples, settings.shots));
    Prepared prepared;
    prepared.prompt_sha256 = hash_of(prompt);
    task.group = question.group;
    if (task.group.empty() && settings.shots > 0) task.group = "all";
    for (std::size_t c = 0; c < prompt.continuations.size(); ++c) {
        const auto& context = prompt.context(c);
        ScoredSequence sequence{model.tokenize_from_start(context + prompt.continuations[c]), 0, 0};
        check_length(model, question, sequence);
        const auto start = static_cast<int>(model.tokenize_from_start(without_trailing_blanks(context)).size());
        prepared.starts.push_back(std::clamp(start, 1, length_of(sequence) - 1));
        prepared.characters.push_back(code_points(prompt.continuations[c]) - 1);
        sequence.first_row = prepared.starts.back() - 1;
        sequence.last_row = length_of(sequence) - 2;
        task.sequences.push_back(std::move(sequence));
    }
    if (settings.benchmark == Benchmark::hellaswag) {
        const int common = common_prefix(task.sequences);
        for (auto& sequence : task.sequences)
            sequence.first_row = std::max(0, std::min(sequence.first_row, common - 1));
    }
    if (settings.benchmark == Benchmark::winogrande && settings.shots == 0)
        add_llama_winogrande(model, question, prepared, task);
    return prepared;
}

double log_prob(std::span<const float> logits, Token token) {
    return static_cast<double>(logits[static_cast<std::size_t>(token)]) -
           log_sum_exp(logits.data(), static_cast<std::int64_t>(logits.size()));
}

int llama_hellaswag_pick(const SequenceTask& task, const TaskLogits& logits) {
    const int common = common_prefix(task.sequences);
    int best = 0;
    double best_mean = 0.0;
    for (std::size_t s = 0; s < task.sequences.size(); ++s) {
        const auto& tokens = task.sequences[s].tokens;
        const auto next = [&](int row) { return tokens[static_cast<std::size_t>(row) + 1]; };
        const int last = task.sequences[s].last_row;
        auto sum =
            static_cast<double>(llama_perplexity::log_of_rounded_prob(logits.at(s, common - 1), next(common - 1)));
        for (int row = common; row <= last; ++row)
            sum += static_cast<double>(llama_perplexity::log_prob(logits.at(s, row), next(row)));
        const double mean = sum / (last - common + 2);
        if (s == 0 || mean > best_mean) {
            best_mean = mean;
            best = static_cast<int>(s);
        }
    }
    return best;
}

/// Sequences 2 and 3 of the task. The last token is not scored where there is more than one. For the second option
/// llama-perplexity reads the first row from behind the end of the first option's sequence wherever the option itself
/// is scored (a FIXME in its source); its score is only reproduced by doing the same.
int llama_winogrande_pick(const Prepared& prepared, const SequenceTask& task, const TaskLogits& logits) {
    const auto& first = task.sequences[2];
    const auto& second = task.sequences[3];
    const int common = common_prefix(std::span(task.sequences).subspan(2, 2));
    constexpr int least_behind = 3;
    const bool skips_option = length_of(first) - common > least_behind && length_of(second) - common > least_behind;
    const auto mean = [&](std::size_t s, const ScoredSequence& sequence, auto row_of) {
        const int length = length_of(sequence);
        int start = skips_option ? prepared.option_ends[s - 2] : common;
        if (start >= length) start = common;
        const int unscored = length - start > 1 ? 1 : 0;
        float sum = 0.0F;
        for (int j = start - 1; j < length - 1 - unscored; ++j)
            sum += llama_perplexity::log_prob(row_of(j), sequence.tokens[static_cast<std::size_t>(j) + 1]);
        return sum / static_cast<float>(length - start - unscored);
    };
    const float score_1 = mean(2, first, [&](int j) { return logits.at(2, j); });
    const float score_2 = mean(
        3, second, [&](int j) { return j < common ? logits.at(2, length_of(first) - common + j) : logits.at(3, j); });
    return score_1 > score_2 ? 0 : 1;
}

template <typename Value>
int best_of(std::size_t count, Value value) {
    int best = 0;
    for (std::size_t i = 1; i < count; ++i)
        if (value(i) > value(static_cast<std::size_t>(best))) best = static_cast<int>(i);
    return best;
}

/// The share of the true answers in the probability of all.
double true_share(const ChoiceScore& score, const std::vector<int>& right) {
    const double max = *std::ranges::max_element(score.log_probs);
    double all = 0.0, of_right = 0.0;
    for (std::size_t c = 0; c < score.log_probs.size(); ++c) {
        const double p = std::exp(score.log_probs[c] - max);
        all += p;
        if (std::ranges::find(right, static_cast<int>(c)) != right.end()) of_right += p;
    }
    return of_right / all;
}

ChoiceScore judge(const Question& question, const Prepared& prepared, const SequenceTask& task,
                  const TaskLogits& logits, Benchmark benchmark) {
    ChoiceScore score;
    score.prompt_sha256 = prepared.prompt_sha256;
    for (std::size_t c = 0; c < question.choices.size(); ++c) {
        const auto& sequence = task.sequences[c];
        double sum = 0.0;
        for (int row = prepared.starts[c] - 1; row + 1 < length_of(sequence); ++row)
            sum += log_prob(logits.at(c, row), sequence.tokens[static_cast<std::size_t>(row) + 1]);
        score.log_probs.push_back(sum);
        score.token_counts.push_back(length_of(sequence) - prepared.starts[c]);
    }
    const auto count = question.choices.size();
    for (const auto& metric : choice_metrics(benchmark)) {
        if (metric == "mc2") {
            score.values[metric] = true_share(score, question.right);
            continue;
        }
        if (metric == "llama_perplexity" && benchmark == Benchmark::winogrande && prepared.option_ends.empty())
            continue;
        int pick = 0;
        if (metric == "acc")
            pick = best_of(count, [&](std::size_t c) { return score.log_probs[c]; });
        else if (metric == "acc_norm")
            pick = best_of(count, [&](std::size_t c) { return score.log_probs[c] / prepared.characters[c]; });
        else
            pick = benchmark == Benchmark::hellaswag ? llama_hellaswag_pick(task, logits)
                                                     : llama_winogrande_pick(prepared, task, logits);
        score.picks[metric] = pick;
        score.values[metric] = std::ranges::find(question.right, pick) != question.right.end() ? 1.0 : 0.0;
    }
    return score;
}

}  // namespace

std::vector<std::string> choice_metrics(Benchmark benchmark) {
    switch (benchmark) {
        case Benchmark::hellaswag:
            return {"acc", "acc_norm", "llama_perplexity"};
        case Benchmark::winogrande:
            return {"acc", "llama_perplexity"};
        case Benchmark::truthfulqa:
            return {"acc", "mc2"};
        case Benchmark::mmlu:
        case Benchmark::mmlu_redux:
            return {"acc"};
        default:
            return {"acc", "acc_norm"};
    }
}

std::string headline_metric(Benchmark benchmark) {
    switch (benchmark) {
        case Benchmark::hellaswag:
        case Benchmark::arc:
            return "acc_norm";
        case Benchmark::truthfulqa:
            return "mc2";
        default:
            return "acc";
    }
}

void score_choices(const Model& model, std::span<const Question> questions, std::span<const Question> examples,
                   const ChoiceSettings& settings, const std::function<void(std::size_t, const ChoiceScore&)>& done,
                   Progress& progress) {
    std::vector<Prepared> prepared(questions.size());
    std::vector<SequenceTask> tasks(questions.size());
    parallel_chunks(static_cast<std::int64_t>(questions.size()), 16, settings.threads,
                    [&](std::int64_t begin, std::int64_t end) {
                        for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i)
                            prepared[i] = prepare(model, questions[i], examples, settings, tasks[i]);
                    });
    std::vector<ChoiceScore> scores(questions.size());
    progress.begin("asking", static_cast<double>(questions.size()));
    auto begun = std::chrono::steady_clock::now();
    score_sequences(
        model, tasks, {settings.threads, settings.share_prefixes},
        [&](std::size_t i, const TaskLogits& logits) {
            scores[i] = judge(questions[i], prepared[i], tasks[i], logits, settings.benchmark);
        },
        [&](std::size_t first, std::size_t last) {
            const auto now = std::chrono::steady_clock::now();
            const double elapsed = std::chrono::duration<double, std::milli>(now - begun).count();
            begun = now;
            for (auto i = first; i < last; ++i) {
                scores[i].milliseconds = elapsed / static_cast<double>(last - first);
                done(i, scores[i]);
                scores[i] = {};
            }
            progress.advance(static_cast<double>(last), "questions");
        },
        progress);
    progress.end();
}

}  // namespace cerebellum
