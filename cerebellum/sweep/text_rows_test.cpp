#include "cerebellum/sweep/text_rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "cerebellum/gguf/gguf_support_test.h"
#include "cerebellum/llama/log.h"
#include "cerebellum/replay/replay_support_test.h"

namespace cerebellum {
namespace {

constexpr int n_tokens = 32;

class TextRows : public ::testing::Test {
  protected:
    TextRows() : model_((silence_llama_log(), Model::load(testing::small_model()))), engine_(model_, n_tokens, 1) {
        for (const unsigned seed : {1U, 2U}) {
            windows_.push_back(engine_.prepare(testing::random_tokens(model_, n_tokens, seed)));
            for (const auto token : windows_.back().tokens) tokens_.insert(token);
        }
    }
    std::vector<std::int64_t> rows(const std::string& weight, std::span<const double> mass, double neglected) const {
        return text_rows(engine_.topology(), weight, windows_, mass, neglected);
    }

    Model model_;
    ReplayEngine engine_;
    std::vector<Window> windows_;
    std::set<std::int64_t> tokens_;
};

TEST_F(TextRows, of_an_embedding_are_the_tokens_of_the_text) {
    ASSERT_TRUE(reads_text_by_rows(engine_.topology(), "token_embd.weight"));
    const auto found = rows("token_embd.weight", {}, 0.0);
    EXPECT_TRUE(std::ranges::equal(found, tokens_));
}

TEST_F(TextRows, of_an_output_matrix_hold_all_but_the_neglected_mass) {
    ASSERT_TRUE(reads_text_by_rows(engine_.topology(), "output.weight"));
    std::vector<double> mass(static_cast<std::size_t>(model_.n_vocab()), 1e-6);
    for (std::size_t i = 0; i < 10; ++i) mass[100 * i + 7] = 1.0;
    const auto likely = rows("output.weight", mass, 0.05);
    ASSERT_EQ(likely.size(), 10U);
    for (std::size_t i = 0; i < 10; ++i) EXPECT_EQ(likely[i], static_cast<std::int64_t>(100 * i + 7));
    EXPECT_EQ(rows("output.weight", mass, 0.15).size(), 9U);
    EXPECT_TRUE(rows("output.weight", mass, 0.0).empty()) << "all rows: nothing is saved";
}

TEST_F(TextRows, predictions_of_the_source_add_up_to_one_a_position) {
    std::vector<double> mass(static_cast<std::size_t>(model_.n_vocab()));
    const auto& topology = engine_.topology();
    const auto before = engine_.slice(0, topology.head_cut());
    double positions = 0.0;
    for (const auto& window : windows_) {
        before->run(window.inputs, {});
        engine_.add_predictions(window, before->live_out({}), mass);
        positions += n_tokens - 1 - burn_in(n_tokens);
    }
    EXPECT_NEAR(std::accumulate(mass.begin(), mass.end(), 0.0), positions, 1e-3 * positions);
}

TEST_F(TextRows, matrices_of_blocks_have_none) {
    EXPECT_FALSE(reads_text_by_rows(engine_.topology(), "blk.0.attn_q.weight"));
}

}  // namespace
}  // namespace cerebellum
