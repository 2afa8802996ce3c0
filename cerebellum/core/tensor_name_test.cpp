#include "cerebellum/core/tensor_name.h"

#include <gtest/gtest.h>

namespace cerebellum {
namespace {

TEST(TensorName, block_and_role) {
    EXPECT_EQ(block_of("blk.12.attn_q.weight"), 12);
    EXPECT_EQ(block_of("token_embd.weight"), std::nullopt);
    EXPECT_EQ(block_of("blk.x.attn_q.weight"), std::nullopt);
    EXPECT_EQ(block_of("blk.12"), std::nullopt);
    EXPECT_EQ(role_of("blk.12.attn_q.weight"), "attn_q");
    EXPECT_EQ(role_of("blk.0.ffn_gate.3.weight"), "ffn_gate.3");
    EXPECT_EQ(role_of("blk.0.ssm_a"), "ssm_a");
    EXPECT_EQ(role_of("output.weight"), "output");
}

TEST(TensorName, a_glob_matches_name_stem_or_role_as_a_whole) {
    for (const char* glob : {"blk.3.attn_v.weight", "blk.3.attn_v", "attn_v", "attn_?", "blk.[0-3].*", "*"})
        EXPECT_TRUE(matches_tensor(glob, "blk.3.attn_v.weight")) << glob;
    for (const char* glob : {"attn", "blk.3", "v", "blk.[4-9].*", "output", "attn_v.w"})
        EXPECT_FALSE(matches_tensor(glob, "blk.3.attn_v.weight")) << glob;
    EXPECT_FALSE(matches_tensor("output", "blk.3.attn_output.weight"));
    EXPECT_TRUE(matches_tensor("output", "output.weight"));
}

}  // namespace
}  // namespace cerebellum
