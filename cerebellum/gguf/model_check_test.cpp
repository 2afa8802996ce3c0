#include "cerebellum/gguf/model_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cerebellum/core/error.h"
#include "cerebellum/gguf/gguf_support_test.h"

namespace cerebellum {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::TemporaryFolder;

/// What check_model() says of a model of two blocks, 64 columns, 4 heads and 2 tokens whose metadata `change` changes;
/// empty where it is content.
template <typename Change>
std::string said_of(Change change) {
    const TemporaryFolder folder;
    const auto path = folder / "model.gguf";
    testing::write_test_gguf(path,
                             {{"token_embd.weight", GGML_TYPE_F32, {64, 2, 1, 1}},
                              {"blk.0.attn_q.weight", GGML_TYPE_F32, {64, 64, 1, 1}},
                              {"blk.1.attn_k.weight", GGML_TYPE_F32, {64, 32, 1, 1}}},
                             [&](gguf_context* context) {
                                 const char* tokens[] = {"a", "b", "c"};
                                 gguf_set_val_u32(context, "llama.block_count", 2);
                                 gguf_set_val_u32(context, "llama.embedding_length", 64);
                                 gguf_set_val_u32(context, "llama.attention.head_count", 4);
                                 gguf_set_val_u32(context, "llama.attention.head_count_kv", 2);
                                 gguf_set_arr_str(context, "tokenizer.ggml.tokens", tokens, 2);
                                 change(context);
                             });
    try {
        check_model(GgufFile::open(path));
        return "";
    } catch (const Error& error) {
        EXPECT_THAT(error.what(), HasSubstr(path.string()));
        return error.what();
    }
}

auto number(const char* key, std::uint32_t value) {
    return [=](gguf_context* context) { gguf_set_val_u32(context, key, value); };
}

TEST(ModelCheck, is_content_with_models_that_agree_with_themselves) {
    check_model(GgufFile::open(testing::small_model()));
    EXPECT_EQ(said_of([](gguf_context*) {}), "");
    // Without its last block, which predicts further tokens.
    EXPECT_EQ(said_of([](gguf_context* context) {
                  gguf_set_val_u32(context, "llama.block_count", 3);
                  gguf_set_val_u32(context, "llama.nextn_predict_layers", 1);
              }),
              "");
    EXPECT_EQ(said_of([](gguf_context* context) { gguf_remove_key(context, "llama.block_count"); }), "");
}

TEST(ModelCheck, names_key_value_and_tensors) {
    EXPECT_THAT(said_of(number("llama.block_count", 3)),
                AllOf(HasSubstr("llama.block_count is 3"), HasSubstr("of 2 blocks")));
    EXPECT_THAT(said_of(number("llama.block_count", 1)), HasSubstr("llama.block_count is 1"));
    EXPECT_THAT(said_of(number("llama.block_count", 0)), HasSubstr("llama.block_count is 0"));
    EXPECT_THAT(said_of(number("llama.block_count", 4000000000)), HasSubstr("llama.block_count is 4000000000"));
    EXPECT_THAT(said_of([](gguf_context* context) {
                    gguf_set_val_u32(context, "llama.block_count", 4000000000);
                    gguf_set_val_u32(context, "llama.nextn_predict_layers", 4000000000);
                }),
                HasSubstr("llama.block_count is 4000000000"));
    EXPECT_THAT(said_of(number("llama.embedding_length", 32)),
                AllOf(HasSubstr("llama.embedding_length is 32"), HasSubstr("64 weights")));
    EXPECT_THAT(said_of([](gguf_context* context) {
                    const char* tokens[] = {"a", "b", "c"};
                    gguf_set_arr_str(context, "tokenizer.ggml.tokens", tokens, 3);
                }),
                AllOf(HasSubstr("tokenizer.ggml.tokens has 3"), HasSubstr("2 rows")));
    EXPECT_THAT(said_of(number("llama.attention.head_count", 7)),
                AllOf(HasSubstr("llama.attention.head_count is 7"), HasSubstr("blk.0.attn_q.weight has 64 rows")));
    EXPECT_THAT(said_of(number("llama.attention.head_count_kv", 0)), HasSubstr("head_count_kv is 0"));
}

}  // namespace
}  // namespace cerebellum
