#include "cerebellum/core/list_lines.h"

#include <gtest/gtest.h>

namespace cerebellum {
namespace {

TEST(ListLines, are_what_is_listed_with_their_numbers) {
    const auto lines = list_lines("# a remark\r\n\r\n  a=b # why\r\n\t\nc#d\n#\nlast");
    ASSERT_EQ(lines.size(), 3U);
    EXPECT_EQ(lines[0].number, 3);
    EXPECT_EQ(lines[0].text, "a=b");
    EXPECT_EQ(lines[1].number, 5);
    EXPECT_EQ(lines[1].text, "c#d");
    EXPECT_EQ(lines[2].number, 7);
    EXPECT_EQ(lines[2].text, "last");
    EXPECT_TRUE(list_lines("").empty());
    EXPECT_TRUE(list_lines("\n # only \n").empty());
}

}  // namespace
}  // namespace cerebellum
