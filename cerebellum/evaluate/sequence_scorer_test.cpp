#include "cerebellum/evaluate/sequence_scorer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "cerebellum/gguf/gguf_support_test.h"

namespace cerebellum {
namespace {

/// Every sequence must find its own tokens in the tree, in their places, and its rows behind the right ones.
void expect_complete(const SequenceTask& task, int begin, bool share) {
    const auto tree = task_tokens(task, begin, share);
    std::vector<int> position_of_row, row_of_node;
    for (const auto& node : tree.nodes)
        if (node.wants_logits) position_of_row.push_back(node.position);
    ASSERT_EQ(static_cast<int>(position_of_row.size()), tree.n_rows);
    for (std::size_t s = 0; s < task.sequences.size(); ++s) {
        const auto& sequence = task.sequences[s];
        std::map<int, Token> own;
        int row = 0;
        std::map<int, int> own_rows;
        for (const auto& node : tree.nodes) {
            const bool mine = std::ranges::find(node.sequences, static_cast<int>(s)) != node.sequences.end();
            if (mine) {
                EXPECT_TRUE(own.emplace(node.position, node.token).second) << "two tokens at one place";
                if (node.wants_logits) own_rows[node.position] = row;
            }
            row += node.wants_logits ? 1 : 0;
        }
        for (int p = begin; p <= sequence.last_row; ++p) {
            ASSERT_TRUE(own.contains(p)) << "sequence " << s << " lacks position " << p;
            EXPECT_EQ(own[p], sequence.tokens[static_cast<std::size_t>(p)]);
        }
        for (int p = sequence.first_row; p <= sequence.last_row; ++p) {
            ASSERT_TRUE(own_rows.contains(p));
            EXPECT_EQ(tree.rows[s][static_cast<std::size_t>(p - sequence.first_row)], own_rows[p]);
        }
    }
}

SequenceTask random_task(std::mt19937& random, int begin) {
    SequenceTask task;
    const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
    const int n_sequences = 1 + below(6);
    for (int s = 0; s < n_sequences; ++s) {
        ScoredSequence sequence;
        sequence.tokens.assign(static_cast<std::size_t>(begin), 7);
        const int length = begin + 2 + below(8);
        while (static_cast<int>(sequence.tokens.size()) < length) sequence.tokens.push_back(below(2));
        sequence.first_row = begin + below(length - begin - 1);
        sequence.last_row = sequence.first_row + below(length - sequence.first_row);
        task.sequences.push_back(std::move(sequence));
    }
    return task;
}

TEST(TaskTokens, hold_every_sequence_whatever_is_shared) {
    std::mt19937 random(3);
    for (int trial = 0; trial < 2000; ++trial) {
        const int begin = trial % 3;
        const auto task = random_task(random, begin);
        expect_complete(task, begin, true);
        expect_complete(task, begin, false);
    }
}

TEST(TaskTokens, are_shared_and_stop_where_nothing_is_read) {
    // One context of four tokens and single-token choices: nothing but the context, one row.
    SequenceTask task;
    for (const Token choice : {8, 9, 10, 11}) task.sequences.push_back({{1, 2, 3, 4, choice}, 3, 3});
    const auto tree = task_tokens(task, 0, true);
    EXPECT_EQ(tree.nodes.size(), 4U);
    EXPECT_EQ(tree.n_rows, 1);
    EXPECT_EQ(task_tokens(task, 2, true).nodes.size(), 2U);
    EXPECT_EQ(task_tokens(task, 0, false).nodes.size(), 16U);
}

TEST(ScoreSequences, sharing_changes_no_figure) {
    const auto model = Model::load_to_run(testing::small_model(), {});
    std::mt19937 random(5);
    const auto token = [&] { return static_cast<Token>(random() % static_cast<unsigned>(model.n_vocab())); };
    std::vector<SequenceTask> tasks;
    for (const auto* group : {"one", "one", "one", "two", "two", ""}) {
        static std::map<std::string, std::vector<Token>> beginnings;
        auto& beginning = beginnings[group];
        while (beginning.size() < 40) beginning.push_back(token());
        SequenceTask task{{}, group};
        auto question = beginning;
        for (int i = 0; i < 5; ++i) question.push_back(token());
        for (int choice = 0; choice < 3; ++choice) {
            auto tokens = question;
            for (int i = 0; i <= choice; ++i) tokens.push_back(token());
            const int last = static_cast<int>(tokens.size()) - 2;
            task.sequences.push_back({std::move(tokens), static_cast<int>(question.size()) - 1, last});
        }
        tasks.push_back(std::move(task));
    }
    NoProgress progress;
    const auto logits_of = [&](bool share) {
        std::map<std::tuple<std::size_t, std::size_t, int>, std::vector<float>> all;
        std::size_t finished = 0;
        score_sequences(
            model, tasks, {1, share},
            [&](std::size_t t, const TaskLogits& logits) {
                for (std::size_t s = 0; s < tasks[t].sequences.size(); ++s)
                    for (int p = tasks[t].sequences[s].first_row; p <= tasks[t].sequences[s].last_row; ++p) {
                        const auto row = logits.at(s, p);
                        all[{t, s, p}].assign(row.begin(), row.end());
                    }
            },
            [&](std::size_t first, std::size_t last) {
                EXPECT_EQ(first, finished);
                finished = last;
            },
            progress);
        EXPECT_EQ(finished, tasks.size());
        return all;
    };
    const auto shared = logits_of(true), unshared = logits_of(false);
    ASSERT_EQ(shared.size(), unshared.size());
    // The cache is F16 and other batches round otherwise; a token too many or too few would change logits by ones.
    for (const auto& [key, row] : shared)
        for (std::size_t i = 0; i < row.size(); ++i) ASSERT_NEAR(row[i], unshared.at(key)[i], 0.05F);
}

}  // namespace
}  // namespace cerebellum
