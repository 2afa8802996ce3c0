#include "cerebellum/gguf/split_name.h"

#include <gtest/gtest.h>

namespace cerebellum {
namespace {

TEST(SplitName, is_taken_apart_and_put_together) {
    const auto split = parse_split_name("a folder/model-q4-00002-of-00005.gguf");
    ASSERT_TRUE(split);
    EXPECT_EQ(split->prefix, "a folder/model-q4");
    EXPECT_EQ(split->number, 2);
    EXPECT_EQ(split->count, 5);
    EXPECT_EQ(split_path(split->prefix, 2, 5), "a folder/model-q4-00002-of-00005.gguf");
    EXPECT_EQ(split_path("out.gguf", 1, 12), "out-00001-of-00012.gguf");
    EXPECT_EQ(split_path("model-v1.5", 1, 2), "model-v1.5-00001-of-00002.gguf");
}

TEST(SplitName, is_no_other_name) {
    for (const auto* name : {"model.gguf", "-00001-of-00002.gguf", "m-0001-of-00002.gguf", "m-00001-of-00002.ggu",
                             "m-00001-of-0000x.gguf", "m-00003-of-00002.gguf", "m-00000-of-00002.gguf", ""})
        EXPECT_FALSE(parse_split_name(name)) << name;
}

}  // namespace
}  // namespace cerebellum
