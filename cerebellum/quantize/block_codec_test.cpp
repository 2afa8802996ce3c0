#include "cerebellum/quantize/block_codec.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "cerebellum/core/quant_type.h"

namespace cerebellum {
namespace {

constexpr ggml_type all_types[] = {GGML_TYPE_Q4_0, GGML_TYPE_Q4_1,   GGML_TYPE_Q5_0, GGML_TYPE_Q5_1,
                                   GGML_TYPE_Q8_0, GGML_TYPE_IQ4_NL, GGML_TYPE_Q2_K, GGML_TYPE_Q3_K,
                                   GGML_TYPE_Q4_K, GGML_TYPE_Q5_K,   GGML_TYPE_Q6_K, GGML_TYPE_IQ4_XS};

class BlockCodecTest : public testing::TestWithParam<ggml_type> {
  protected:
    const BlockCodec& codec_ = *find_codec(GetParam());
    std::mt19937 random_{7};

    std::vector<std::uint8_t> quantized(int n_weights) {
        std::normal_distribution<float> normal(0.01f, 0.1f);
        std::vector<float> weights(static_cast<std::size_t>(n_weights));
        for (auto& weight : weights) weight = normal(random_);
        std::vector<std::uint8_t> bytes(type_size_bytes(GetParam(), n_weights, 1));
        ggml_quantize_chunk(GetParam(), weights.data(), bytes.data(), 0, 1, n_weights, nullptr);
        return bytes;
    }
    std::vector<float> dequantized(const std::vector<std::uint8_t>& block) const {
        std::vector<float> weights(static_cast<std::size_t>(codec_.block_size));
        ggml_get_type_traits(GetParam())->to_float(block.data(), weights.data(), codec_.block_size);
        return weights;
    }
    std::vector<float> decoded(const std::vector<std::uint8_t>& block) const {
        std::vector<std::uint8_t> codes(static_cast<std::size_t>(codec_.block_size));
        codec_.read_codes(block.data(), codes.data());
        const auto scales = codec_.read_scales(block.data());
        std::vector<float> weights;
        for (int i = 0; i < codec_.block_size; ++i) {
            const int group = i / codec_.group_size;
            weights.push_back(scales.group_scale(group) * codec_.levels[codes[static_cast<std::size_t>(i)]] +
                              scales.group_offset(group));
        }
        return weights;
    }
};

TEST_P(BlockCodecTest, ReadsWhatGgmlDequantizes) {
    for (int i = 0; i < 20; ++i) {
        const auto block = quantized(codec_.block_size);
        EXPECT_EQ(decoded(block), dequantized(block));
    }
}

TEST_P(BlockCodecTest, WritesWhatGgmlReadsBack) {
    for (int i = 0; i < 20; ++i) {
        auto block = quantized(codec_.block_size);
        const auto pick = [&](int least, int most) {
            return static_cast<std::int16_t>(std::uniform_int_distribution<int>(least, most)(random_));
        };
        std::vector<std::uint8_t> codes;
        for (int w = 0; w < codec_.block_size; ++w)
            codes.push_back(static_cast<std::uint8_t>(pick(0, static_cast<int>(codec_.levels.size()) - 1)));
        auto scales = codec_.read_scales(block.data());
        scales.d = 0.25f;
        if (codec_.has_dmin) scales.dmin = -0.5f;
        for (std::size_t g = 0; g < static_cast<std::size_t>(codec_.n_groups()); ++g) {
            scales.scale[g] = pick(codec_.scale_least, codec_.scale_most);
            scales.min[g] = pick(codec_.min_least, codec_.min_most);
        }
        codec_.write_codes(block.data(), codes.data());
        codec_.write_scales(block.data(), scales);

        std::vector<float> expected;
        for (int w = 0; w < codec_.block_size; ++w) {
            const auto group = static_cast<std::size_t>(w / codec_.group_size);
            expected.push_back(0.25f * static_cast<float>(scales.scale[group]) *
                                   codec_.levels[codes[static_cast<std::size_t>(w)]] +
                               (codec_.has_dmin ? 0.5f : 0.0f) * static_cast<float>(scales.min[group]));
        }
        EXPECT_EQ(dequantized(block), expected);
    }
}

TEST_P(BlockCodecTest, WritingWhatWasReadChangesNothing) {
    const auto block = quantized(codec_.block_size);
    auto again = block;
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(codec_.block_size));
    codec_.read_codes(block.data(), codes.data());
    codec_.write_codes(again.data(), codes.data());
    codec_.write_scales(again.data(), codec_.read_scales(block.data()));
    EXPECT_EQ(again, block);
}

INSTANTIATE_TEST_SUITE_P(Types, BlockCodecTest, testing::ValuesIn(all_types),
                         [](const auto& test) { return type_name(test.param); });

TEST(FindCodec, KnowsNoTypeWithCodebooks) {
    for (const auto type : {GGML_TYPE_IQ2_XXS, GGML_TYPE_IQ3_S, GGML_TYPE_IQ1_S, GGML_TYPE_F16, GGML_TYPE_F32})
        EXPECT_EQ(find_codec(type), nullptr) << type_name(type);
}

}  // namespace
}  // namespace cerebellum
