#include "cerebellum/calibrate/second_moments.h"

#include <ggml-backend.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "cerebellum/gguf/gguf_support_test.h"
#include "cerebellum/llama/log.h"
#include "cerebellum/replay/replay_support_test.h"

namespace cerebellum {
namespace {

using testing::random_tokens;
using testing::small_model;

constexpr int n_tokens = 48;

class Kept final : public MomentSink {
  public:
    bool has(const std::string& input, std::int64_t matrix) const override { return moments.contains({input, matrix}); }
    void put(const std::string& input, std::int64_t matrix, std::span<const float> lower_triangle) override {
        moments[{input, matrix}].assign(lower_triangle.begin(), lower_triangle.end());
        ++puts;
    }

    std::map<std::pair<std::string, std::int64_t>, std::vector<float>> moments;
    int puts = 0;
};

/// Σ x xᵀ in double precision, while libllama evaluates.
class Referee final : public NodeObserver {
  public:
    explicit Referee(std::string weight) : weight_(std::move(weight)) {}
    bool wants(const ggml_tensor& node) override { return node.op == GGML_OP_MUL_MAT && weight_ == node.src[0]->name; }
    void computed(const ggml_tensor& node) override {
        if (!wants(node)) return;
        const auto* x = node.src[1];
        ASSERT_TRUE(ggml_is_contiguous(x));
        const auto n = static_cast<std::size_t>(x->ne[0]);
        std::vector<float> values(static_cast<std::size_t>(ggml_nelements(x)));
        ggml_backend_tensor_get(x, values.data(), 0, ggml_nbytes(x));
        lower.resize(n * (n + 1) / 2);
        for (std::size_t t = 0; t < values.size() / n; ++t)
            for (std::size_t i = 0, k = 0; i < n; ++i)
                for (std::size_t j = 0; j <= i; ++j, ++k)
                    lower[k] += static_cast<double>(values[t * n + i]) * static_cast<double>(values[t * n + j]);
    }

    std::vector<double> lower;

  private:
    std::string weight_;
};

class SecondMoments : public ::testing::Test {
  protected:
    SecondMoments() : model_((silence_llama_log(), Model::load(small_model()))), engine_(model_, n_tokens, 1) {
        for (const unsigned seed : {1U, 2U, 3U})
            windows_.push_back(engine_.prepare(random_tokens(model_, n_tokens, seed)));
        inputs_ =
            find_inputs(engine_.topology(), {"blk.1.attn_q.weight", "blk.1.attn_v.weight", "blk.1.attn_output.weight",
                                             "blk.4.ffn_down.weight", "output.weight", "token_embd.weight"});
    }
    void collect(Kept& kept, std::uint64_t memory_bytes = 1u << 30, int threads = 1) {
        NoProgress silent;
        collect_second_moments(engine_, windows_, inputs_, memory_bytes, threads, kept, silent);
    }

    Model model_;
    ReplayEngine engine_;
    std::vector<Window> windows_;
    std::map<std::string, InputMoments> inputs_;
};

TEST_F(SecondMoments, are_those_of_the_inputs_that_libllama_computes) {
    Kept kept;
    collect(kept);
    for (const std::string weight : {"blk.1.attn_v.weight", "blk.4.ffn_down.weight", "output.weight"}) {
        const auto referee = std::make_shared<Referee>(weight);
        Decoder decoder(model_, n_tokens, 1, referee);
        for (const auto& window : windows_) decoder.decode(window.tokens);
        const auto& moments = kept.moments.at({inputs_.at(weight).input, 0});
        ASSERT_EQ(moments.size(), referee->lower.size()) << weight;
        const double scale = *std::ranges::max_element(referee->lower);
        for (std::size_t i = 0; i < moments.size(); ++i)
            ASSERT_NEAR(static_cast<double>(moments[i]), referee->lower[i], 1e-5 * scale) << weight << " " << i;
    }
}

TEST_F(SecondMoments, of_the_same_input_are_collected_once) {
    EXPECT_FALSE(inputs_.contains("token_embd.weight"));  // looked up, not multiplied
    EXPECT_EQ(inputs_.at("blk.1.attn_v.weight").input, inputs_.at("blk.1.attn_q.weight").input);
    EXPECT_NE(inputs_.at("blk.1.attn_output.weight").input, inputs_.at("blk.1.attn_q.weight").input);
    Kept kept;
    collect(kept);
    EXPECT_EQ(kept.puts, 4);
}

TEST_F(SecondMoments, go_on_where_they_were_interrupted_and_are_the_same_with_little_memory_and_many_threads) {
    Kept whole;
    collect(whole);
    Kept part;
    part.moments = whole.moments;
    part.moments.erase({inputs_.at("blk.1.attn_output.weight").input, 0});
    collect(part);
    EXPECT_EQ(part.puts, 1);
    EXPECT_EQ(part.moments, whole.moments);
    Kept tight;
    collect(tight, 1, 3);
    EXPECT_EQ(tight.moments, whole.moments);
}

}  // namespace
}  // namespace cerebellum
