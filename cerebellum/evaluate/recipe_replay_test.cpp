#include "cerebellum/evaluate/recipe_replay.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "cerebellum/gguf/gguf_support_test.h"
#include "cerebellum/llama/log.h"
#include "cerebellum/quantize/quantize_tensor.h"
#include "cerebellum/replay/replay_support_test.h"

namespace cerebellum {
namespace {

using testing::random_tokens;
using testing::small_model;

TEST(ReplayRecipes, tells_roundings_of_the_same_type_apart_and_computes_what_is_the_same_once) {
    constexpr int n_tokens = 32;
    silence_llama_log();
    const auto source = GgufFile::open(small_model());
    const auto model = Model::load(small_model());
    ReplayEngine engine(model, n_tokens, 1);
    const std::vector<Window> windows = {engine.prepare(random_tokens(model, n_tokens, 1))};
    for (const std::string name : {"blk.2.ffn_down.weight", "output.weight"}) {
        if (source.find(name) == nullptr) continue;  // a tied head
        int quantized = 0;
        // What stands for another rounding are the bytes of another type: all that matters is that they differ.
        const Quantizer quantize = [&](const std::string& tensor, const Encoding& encoding) {
            ++quantized;
            const auto* info = source.find(tensor);
            auto bytes = quantize_tensor(*info, source.data(*info), encoding.type, {}, 1);
            if (encoding.rounding == Rounding::feedback) std::fill(bytes.begin(), bytes.end(), std::byte{0});
            return bytes;
        };
        const TypeMap plain = {{name, GGML_TYPE_Q8_0}};
        const TypeMap feedback = {{name, {GGML_TYPE_Q8_0, Rounding::feedback}}};
        const std::vector<TypeMap> recipes = {plain, feedback, plain};
        NoProgress silent;
        const auto scores = replay_recipes(engine, windows, recipes, quantize, silent);
        EXPECT_GT(scores[1][0].kld, 10.0 * scores[0][0].kld) << name;
        EXPECT_EQ(scores[2][0].kld, scores[0][0].kld) << name;
        EXPECT_EQ(quantized, 2) << name;
    }
}

}  // namespace
}  // namespace cerebellum
