#include "cerebellum/build/compare.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/gguf/gguf_support_test.h"
#include "cerebellum/quantize/quantize_tensor.h"

namespace cerebellum {
namespace {

using ::testing::HasSubstr;
using testing::small_model;
using testing::TemporaryFolder;
using testing::write_test_gguf;

TEST(Compare, finds_a_file_identical_to_itself) {
    const auto file = GgufFile::open(small_model());
    NoProgress progress;
    const auto comparison = compare_gguf(file, file, 2, progress);
    EXPECT_TRUE(comparison.identical());
    EXPECT_TRUE(comparison.same_order);
    EXPECT_EQ(comparison.tensors.size(), file.tensors().size());
    for (const auto& tensor : comparison.tensors) EXPECT_EQ(tensor.relative_error, 0.0) << tensor.name;
}

TEST(Compare, measures_what_quantizing_has_changed) {
    const auto source = GgufFile::open(small_model());
    const TemporaryFolder folder;
    NoProgress progress;
    Recipe recipe;
    recipe.types["blk.2.ffn_up.weight"] = GGML_TYPE_Q4_0;
    BuildOptions options;
    options.provenance = Provenance::none;
    options.tensor_order = {"output.weight"};
    build_gguf(source, recipe, nullptr, folder / "built.gguf", options, progress);
    const auto built = GgufFile::open(folder / "built.gguf");
    const auto comparison = compare_gguf(source, built, 2, progress);
    EXPECT_FALSE(comparison.identical());
    EXPECT_FALSE(comparison.same_order);
    std::vector<std::string> keys;
    for (const auto& key : comparison.keys) keys.push_back(key.key);
    EXPECT_THAT(keys, ::testing::Contains("general.file_type"));
    for (const auto& tensor : comparison.tensors) {
        if (tensor.name != "blk.2.ffn_up.weight") {
            EXPECT_TRUE(tensor.same_bytes) << tensor.name;
            continue;
        }
        // Independently, from the tensors as a whole.
        const TensorInfo &a = *tensor.first, &b = *tensor.second;
        std::vector<float> x(static_cast<std::size_t>(a.n_weights())), y(x.size());
        dequantize_rows(a.type, source.data(a), x);
        dequantize_rows(b.type, built.data(b), y);
        double error = 0.0, norm = 0.0, largest = 0.0;
        for (std::size_t i = 0; i < x.size(); ++i) {
            error += std::pow(static_cast<double>(x[i]) - static_cast<double>(y[i]), 2);
            norm += std::pow(static_cast<double>(x[i]), 2);
            largest = std::max(largest, std::fabs(static_cast<double>(x[i]) - static_cast<double>(y[i])));
        }
        EXPECT_FALSE(tensor.same_bytes);
        EXPECT_NEAR(tensor.relative_error.value(), std::sqrt(error / norm), 1e-12);
        EXPECT_DOUBLE_EQ(tensor.largest_difference.value(), largest);
        EXPECT_GT(*tensor.relative_error, 0.01);
        EXPECT_LT(*tensor.relative_error, 0.2);
    }
}

TEST(Compare, names_what_only_one_file_has) {
    const TemporaryFolder folder;
    write_test_gguf(folder / "a.gguf",
                    {{"both", GGML_TYPE_F32, {32, 2, 1, 1}},
                     {"shape", GGML_TYPE_F32, {32, 2, 1, 1}},
                     {"a", GGML_TYPE_F32, {4, 1, 1, 1}}},
                    [](gguf_context* context) {
                        gguf_set_val_u32(context, "number", 7);
                        gguf_set_val_str(context, "only.a", "text\nof two lines");
                    });
    write_test_gguf(folder / "b.gguf",
                    {{"both", GGML_TYPE_F32, {32, 2, 1, 1}}, {"shape", GGML_TYPE_F32, {32, 3, 1, 1}}},
                    [](gguf_context* context) { gguf_set_val_u64(context, "number", 7); });
    const auto a = GgufFile::open(folder / "a.gguf"), b = GgufFile::open(folder / "b.gguf");
    NoProgress progress;
    const auto comparison = compare_gguf(a, b, 1, progress);
    ASSERT_EQ(comparison.keys.size(), 2u);
    EXPECT_EQ(comparison.keys[0].first, "u32 7");
    EXPECT_EQ(comparison.keys[0].second, "u64 7");
    EXPECT_EQ(comparison.keys[1].first, R"(str "text\nof two lines")");
    EXPECT_EQ(comparison.keys[1].second, std::nullopt);
    ASSERT_EQ(comparison.tensors.size(), 3u);
    EXPECT_FALSE(comparison.tensors[0].second);
    EXPECT_TRUE(comparison.tensors[1].same_bytes);
    EXPECT_FALSE(comparison.tensors[2].same_bytes);
    EXPECT_FALSE(comparison.tensors[2].relative_error);
}

TEST(Compare, lists_a_file_for_diff) {
    const auto file = GgufFile::open(small_model());
    NoProgress progress;
    const auto lines = diffable_listing(file, progress);
    EXPECT_EQ(lines.size(), file.tensors().size() + static_cast<std::size_t>(gguf_get_n_kv(file.context())));
    EXPECT_TRUE(std::ranges::is_sorted(lines));
    EXPECT_THAT(lines, ::testing::Contains(HasSubstr(R"(tensor "blk.0.ffn_down.weight" f16 768x256 sha256:)")));
    EXPECT_THAT(lines, ::testing::Contains(HasSubstr(R"(key "tokenizer.ggml.tokens" = str[4096] sha256:)")));
    EXPECT_THAT(lines, ::testing::Contains(R"(key "llama.block_count" = u32 6)"));
}

}  // namespace
}  // namespace cerebellum
