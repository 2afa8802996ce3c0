#include "cerebellum/build/recipe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "cerebellum/gguf/gguf_support_test.h"

namespace cerebellum {
namespace {

using testing::error_of;
using ::testing::HasSubstr;
using testing::TemporaryFolder;

Recipe example() {
    Recipe recipe;
    recipe.types = {{"output.weight", GGML_TYPE_Q6_K}, {"blk.0.attn_q.weight", GGML_TYPE_IQ2_XXS}};
    recipe.source_fingerprint = std::string(64, 'a');
    recipe.source_name = "model.gguf";
    recipe.file_bytes = 123456;
    recipe.predicted_kld = 0.0625;
    recipe.provenance = {{"journal", "abc"}, {"strange \xff name", "x"}};
    recipe.scaling = {{"blk.0.ffn_norm.weight", {}, {"blk.0.ffn_up.weight"}, {1, -2, 0}}};
    return recipe;
}

TEST(Recipe, comes_back_as_it_was_written) {
    const TemporaryFolder folder;
    write_recipe(folder / "recipe.json", example());
    const Recipe recipe = read_recipe(folder / "recipe.json");
    EXPECT_EQ(recipe.types, example().types);
    EXPECT_EQ(recipe.source_fingerprint, example().source_fingerprint);
    EXPECT_EQ(recipe.source_name, "model.gguf");
    EXPECT_EQ(recipe.file_bytes, 123456u);
    EXPECT_EQ(recipe.predicted_kld, 0.0625);
    EXPECT_EQ(recipe.provenance.at("journal"), "abc");
    EXPECT_EQ(recipe.scaling, example().scaling);
    EXPECT_EQ(recipe_sha256(recipe), recipe_sha256(example()));
    Recipe unknown = example();
    unknown.predicted_kld = std::nan("");
    EXPECT_TRUE(std::isnan(recipe_from_json(recipe_to_json(unknown), "x").predicted_kld));
}

TEST(Recipe, says_what_is_wrong) {
    const auto refusal = [](std::string_view text) { return error_of([&] { recipe_from_json(text, "my.json"); }); };
    for (const char* text : {"", "{", "[]", "3", "{}", "null", R"({"format": "other"})"})
        EXPECT_THAT(refusal(text), HasSubstr("my.json")) << text;
    EXPECT_THAT(refusal(R"({"format": "cerebellum-recipe", "version": 2})"), HasSubstr("version 2"));
    EXPECT_THAT(refusal(R"({"format": "cerebellum-recipe", "version": 1})"), HasSubstr("no valid recipe"));
    for (const char* types : {"null", "[]", "3"})
        EXPECT_THAT(refusal(R"({"format": "cerebellum-recipe", "version": 1, "source": {}, "types": )" +
                            std::string(types) + "}"),
                    HasSubstr("no valid recipe: a value"))
            << types;
    EXPECT_THAT(
        refusal(R"({"format": "cerebellum-recipe", "version": 1, "source": {}, "types": {"a.weight": "q4_9"}})"),
        HasSubstr("q4_9, which it wants for a.weight"));
}

TEST(Recipe, of_any_depth_is_one_clear_error) {
    const std::string brackets(200'000, '[');
    for (const auto& text : {brackets, R"({"format": "cerebellum-recipe", "version": )" + brackets + "1" +
                                           std::string(200'000, ']') + "}"})
        EXPECT_EQ(error_of([&] { recipe_from_json(text, "my.json"); }),
                  "cannot use my.json: its JSON is nested more than 200 deep");
}

TEST(Recipe, patterns_hit_their_tensor_alone) {
    const TypeMap types = {{"output.weight", GGML_TYPE_Q6_K}, {"blk.1.attn_output.weight", GGML_TYPE_Q4_K}};
    EXPECT_EQ(tensor_type_file(types), "^blk\\.1\\.attn_output\\.weight$=q4_K\n^output\\.weight$=q6_K\n");
    // Letters that llama-quantize would lower-case, and characters of its own syntax.
    EXPECT_EQ(tensor_type_file({{"A b=c+.w", GGML_TYPE_F16}}), "^..b.c.\\.w$=f16\n");
}

}  // namespace
}  // namespace cerebellum
