#include "cerebellum/llama/sampler.h"

#include <gtest/gtest.h>
#include <llama.h>

#include <memory>
#include <random>
#include <set>
#include <vector>

#include "cerebellum/gguf/gguf_support_test.h"
#include "cerebellum/llama/log.h"

namespace cerebellum {
namespace {

TEST(Sampler, tokens_are_those_of_llama_cpp_s_sampler) {
    constexpr std::uint32_t seed = 77;
    const std::unique_ptr<llama_sampler, void (*)(llama_sampler*)> referee(llama_sampler_init_dist(seed),
                                                                           llama_sampler_free);
    std::mt19937 random(seed), other(5);
    std::normal_distribution<float> normal(0.0F, 3.0F);
    std::vector<float> logits(5000);
    std::vector<llama_token_data> candidates(logits.size());
    std::set<Token> seen;
    for (int trial = 0; trial < 200; ++trial) {
        for (std::size_t i = 0; i < logits.size(); ++i) {
            logits[i] = normal(other);
            candidates[i] = {static_cast<Token>(i), logits[i], 0.0F};
        }
        llama_token_data_array array{candidates.data(), candidates.size(), -1, false};
        llama_sampler_apply(referee.get(), &array);
        const Token got = sample_token(logits, std::uniform_real_distribution<double>(0.0, 1.0)(random));
        ASSERT_EQ(got, candidates[static_cast<std::size_t>(array.selected)].id) << trial;
        seen.insert(got);
    }
    EXPECT_GT(seen.size(), 100U);
}

TEST(Sampler, sequences_do_not_depend_on_the_number_of_threads_that_pick_tokens) {
    silence_llama_log();
    const auto model = Model::load(testing::small_model());
    NoProgress progress;
    // More than 16 sequences of this vocabulary are divided among threads.
    const auto one = sample_sequences(model, 20, 4, 4, 1, progress);
    const auto two = sample_sequences(model, 20, 4, 4, 2, progress);
    ASSERT_EQ(one.size(), 20U);
    EXPECT_EQ(one, two);
    EXPECT_NE(one[0], one[1]);
}

}  // namespace
}  // namespace cerebellum
