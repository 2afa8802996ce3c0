#include "cerebellum/evaluate/sequence_scorer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>

#include "cerebellum/core/error.h"
#include "cerebellum/core/parallel.h"
#include "cerebellum/llama/batch_decoder.h"

namespace cerebellum {

namespace {

constexpr int usual_batch = 512;              // tokens of a batch: llama.cpp's own, and as many as fill its kernels
constexpr int logits_bytes = 128 << 20;       // of a batch
constexpr int least_shared_prefix = 16;       // tokens; less is not worth an evaluation of its own
constexpr std::size_t sequences_limit = 256;  // llama.cpp's

int common_length(std::span<const Token> a, std::span<const Token> b) {
    const auto [at, other] = std::ranges::mismatch(a, b);
    return static_cast<int>(at - a.begin());
}

/// Tasks [first, last) and how many tokens all their sequences begin with.
struct Group {
    std::size_t first = 0, last = 0;
    int prefix = 0;
};

/// A position whose logits are wanted, or anything behind, cannot lie in the prefix.
int longest_prefix(const SequenceTask& task, std::span<const Token> beginning) {
    int length = static_cast<int>(beginning.size());
    for (const auto& sequence : task.sequences)
        length = std::min({length, common_length(sequence.tokens, beginning), sequence.first_row});
    return length;
}

Group group_from(std::span<const SequenceTask> tasks, std::size_t first, bool share) {
    Group group{first, first + 1, 0};
    while (group.last < tasks.size() && tasks[group.last].group == tasks[first].group) ++group.last;
    if (!share || group.last == first + 1 || tasks[first].group.empty()) return group;
    const std::span<const Token> beginning = tasks[first].sequences.front().tokens;
    group.prefix = static_cast<int>(beginning.size());
    for (std::size_t i = first; i < group.last; ++i)
        group.prefix = std::min(group.prefix, longest_prefix(tasks[i], beginning));
    if (group.prefix < least_shared_prefix) group.prefix = 0;
    return group;
}

struct Job {
    std::size_t task = 0;
    TaskTokens tokens;
};

class Runner {
  public:
    Runner(const Model& model, std::span<const SequenceTask> tasks, const SequenceScoring& scoring)
        : tasks_(tasks),
          scoring_(scoring),
          share_(scoring.share_prefixes && !model.is_recurrent()),
          groups_(make_groups()),
          decoder_(model, settings(model)) {}

    void run(const std::function<void(std::size_t, const TaskLogits&)>& score,
             const std::function<void(std::size_t, std::size_t)>& finished, Progress& progress) {
        for (const auto& group : groups_) {
            decoder_.forget();
            evaluate_prefix(group, progress);
            for (std::size_t first = group.first; first < group.last;) {
                progress.check();
                const auto last = evaluate_batch(group, first, score);
                finished(first, last);
                first = last;
            }
        }
    }

  private:
    std::vector<Group> make_groups() const {
        std::vector<Group> groups;
        for (std::size_t first = 0; first < tasks_.size(); first = groups.back().last)
            groups.push_back(group_from(tasks_, first, share_));
        return groups;
    }

    BatchDecoderSettings settings(const Model& model) {
        std::size_t longest = usual_batch, most_sequences = 0;
        int prefix = 0;
        for (const auto& group : groups_) {
            prefix = std::max(prefix, group.prefix);
            for (auto i = group.first; i < group.last; ++i) {
                longest = std::max(longest, task_tokens(tasks_[i], group.prefix, share_).nodes.size());
                most_sequences = std::max(most_sequences, tasks_[i].sequences.size());
            }
        }
        if (most_sequences + 1 > sequences_limit)
            throw Error(fmt::format("a question has {} choices; llama.cpp takes {} at a time", most_sequences,
                                    sequences_limit - 1));
        batch_tokens_ = longest;
        rows_limit_ = std::max(1, logits_bytes / (model.n_vocab() * static_cast<int>(sizeof(float))));
        BatchDecoderSettings settings;
        settings.n_sequences = static_cast<int>(sequences_limit);
        settings.batch_tokens = static_cast<int>(longest);
        settings.cache_tokens = prefix + settings.batch_tokens;
        settings.shared_cache = true;
        settings.threads = scoring_.threads;
        return settings;
    }

    void evaluate_prefix(const Group& group, Progress& progress) {
        const auto& tokens = tasks_[group.first].sequences.front().tokens;
        for (int begin = 0; begin < group.prefix; begin += usual_batch) {
            progress.check();
            std::vector<BatchToken> batch;
            for (int i = begin; i < std::min(group.prefix, begin + usual_batch); ++i)
                batch.push_back({tokens[static_cast<std::size_t>(i)], i, {0}, false});
            decoder_.decode(batch);
        }
    }

    /// As many tasks from `first` on as fit; returns the one behind the last.
    std::size_t evaluate_batch(const Group& group, std::size_t first,
                               const std::function<void(std::size_t, const TaskLogits&)>& score) {
        std::vector<Job> jobs;
        std::vector<BatchToken> batch;
        int next_sequence = 1, n_rows = 0;
        for (auto i = first; i < group.last; ++i) {
            auto tokens = task_tokens(tasks_[i], group.prefix, share_);
            const auto sequences = tasks_[i].sequences.size();
            if (!jobs.empty() &&
                (batch.size() + tokens.nodes.size() > batch_tokens_ || n_rows + tokens.n_rows > rows_limit_ ||
                 static_cast<std::size_t>(next_sequence) + sequences > sequences_limit))
                break;
            for (const auto& node : tokens.nodes) {
                BatchToken token{node.token, node.position, node.sequences, node.wants_logits};
                for (auto& sequence : token.sequences) sequence += next_sequence;
                batch.push_back(std::move(token));
            }
            for (auto& of_sequence : tokens.rows)
                for (auto& row : of_sequence) row += n_rows;
            n_rows += tokens.n_rows;
            next_sequence += static_cast<int>(sequences);
            jobs.push_back({i, std::move(tokens)});
        }
        if (group.prefix > 0)
            for (int s = 1; s < next_sequence; ++s) decoder_.continue_from(0, s);
        const auto logits = decoder_.decode(batch);
        const auto n_vocab = static_cast<std::size_t>(decoder_.n_vocab());
        parallel_chunks(
            static_cast<std::int64_t>(jobs.size()), 1, scoring_.threads, [&](std::int64_t begin, std::int64_t end) {
                for (auto j = static_cast<std::size_t>(begin); j < static_cast<std::size_t>(end); ++j)
                    score(jobs[j].task, TaskLogits(logits, n_vocab, jobs[j].tokens.rows, tasks_[jobs[j].task]));
            });
        for (int s = 1; s < next_sequence; ++s) decoder_.forget(s);
        return jobs.back().task + 1;
    }

    std::span<const SequenceTask> tasks_;
    SequenceScoring scoring_;
    bool share_;
    std::vector<Group> groups_;
    std::size_t batch_tokens_ = 0;
    int rows_limit_ = 0;
    BatchDecoder decoder_;
};

}  // namespace

TaskTokens task_tokens(const SequenceTask& task, int begin, bool share) {
    TaskTokens result;
    const auto& sequences = task.sequences;
    std::vector<std::vector<int>> common(sequences.size(), std::vector<int>(sequences.size()));
    for (std::size_t a = 0; a < sequences.size() && share; ++a)
        for (std::size_t b = a + 1; b < sequences.size(); ++b)
            common[a][b] = common[b][a] = common_length(sequences[a].tokens, sequences[b].tokens);
    std::vector<std::vector<int>> row_at(sequences.size());  // [sequence][position − begin], −1 where none is wanted
    for (std::size_t s = 0; s < sequences.size(); ++s) {
        const auto& own = sequences[s];
        assert(own.first_row >= begin && own.last_row >= own.first_row);
        // What an earlier sequence begins with as well is evaluated there.
        int from = begin;
        std::size_t parent = s;
        for (std::size_t e = 0; e < s && share; ++e) {
            if (common[s][e] <= from) continue;
            from = common[s][e];
            parent = e;
        }
        int deepest = own.last_row;
        for (std::size_t l = s + 1; l < sequences.size() && share; ++l)
            deepest = std::max(deepest, std::min(sequences[l].last_row, common[s][l] - 1));
        auto& rows = row_at[s];
        if (parent != s) {
            const auto shared = static_cast<std::size_t>(from - begin);
            rows.assign(row_at[parent].begin(),
                        row_at[parent].begin() + static_cast<std::ptrdiff_t>(std::min(shared, row_at[parent].size())));
        }
        for (int p = from; p <= deepest; ++p) {
            TaskTokens::Node node{own.tokens[static_cast<std::size_t>(p)], p, {}, false};
            for (std::size_t l = s; l < sequences.size(); ++l) {
                if (l != s && common[s][l] <= p) continue;
                node.sequences.push_back(static_cast<int>(l));
                node.wants_logits |= p >= sequences[l].first_row && p <= sequences[l].last_row;
            }
            rows.push_back(node.wants_logits ? result.n_rows++ : -1);
            result.nodes.push_back(std::move(node));
        }
    }
    for (std::size_t s = 0; s < sequences.size(); ++s) {
        std::vector<int> rows;
        for (int p = sequences[s].first_row; p <= sequences[s].last_row; ++p)
            rows.push_back(row_at[s][static_cast<std::size_t>(p - begin)]);
        result.rows.push_back(std::move(rows));
    }
    return result;
}

void score_sequences(const Model& model, std::span<const SequenceTask> tasks, const SequenceScoring& scoring,
                     const std::function<void(std::size_t task, const TaskLogits& logits)>& score,
                     const std::function<void(std::size_t first, std::size_t last)>& finished, Progress& progress) {
    if (tasks.empty()) return;
    Runner(model, tasks, scoring).run(score, finished, progress);
}

}  // namespace cerebellum
