#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "cerebellum/core/progress.h"
#include "cerebellum/llama/model.h"

namespace cerebellum {

/// A sequence and the positions [first_row, last_row] of it whose logits are wanted.
struct ScoredSequence {
    std::vector<Token> tokens;
    int first_row = 0;
    int last_row = 0;
};

/// Sequences that begin alike, usually the choices of a question: what they have in common is evaluated once.
struct SequenceTask {
    std::vector<ScoredSequence> sequences;
    std::string group;  // consecutive tasks of a group begin alike as well, for example with the same examples
};

/// The logits of one task, while they are there.
class TaskLogits {
  public:
    TaskLogits(std::span<const float> logits, std::size_t n_vocab, const std::vector<std::vector<int>>& rows,
               const SequenceTask& task)
        : logits_(logits), n_vocab_(n_vocab), rows_(&rows), task_(&task) {}
    /// Of a wanted position: what follows it.
    std::span<const float> at(std::size_t sequence, int position) const {
        const int row = (*rows_)[sequence][static_cast<std::size_t>(position - task_->sequences[sequence].first_row)];
        return logits_.subspan(static_cast<std::size_t>(row) * n_vocab_, n_vocab_);
    }

  private:
    std::span<const float> logits_;
    std::size_t n_vocab_;
    const std::vector<std::vector<int>>* rows_;
    const SequenceTask* task_;
};

struct SequenceScoring {
    int threads = 1;
    bool share_prefixes = true;  // false: every sequence by itself, for comparison and for recurrent models
};

/// Evaluates the tasks in their order, many in a batch, and calls `score(task, logits)` for each, from several threads.
/// `finished(first, last)` is called behind each batch, for tasks [first, last). Throws Error naming a task that is
/// longer than llama.cpp can take.
void score_sequences(const Model& model, std::span<const SequenceTask> tasks, const SequenceScoring& scoring,
                     const std::function<void(std::size_t task, const TaskLogits& logits)>& score,
                     const std::function<void(std::size_t first, std::size_t last)>& finished, Progress& progress);

/// What score_sequences evaluates for one task; exposed to be tested.
struct TaskTokens {
    struct Node {
        Token token;
        int position;
        std::vector<int> sequences;  // of the task
        bool wants_logits;
    };
    std::vector<Node> nodes;
    std::vector<std::vector<int>> rows;  // [sequence][position − first_row]: which of the nodes' logits, in order
    int n_rows = 0;
};

/// The task's tokens from position `begin` on as a tree; what comes before is the same in all sequences and evaluated
/// already. Last tokens that nothing is read behind are left out.
TaskTokens task_tokens(const SequenceTask& task, int begin, bool share);

}  // namespace cerebellum
