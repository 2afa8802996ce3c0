#include "cerebellum/report/table.h"

#include <gtest/gtest.h>

namespace cerebellum {
namespace {

TEST(Table, aligns_columns_and_counts_characters_not_bytes) {
    EXPECT_EQ(format_table({"file", "KLD"}, {{"ours", "0.1 ± 0.2"}, {"longer name", "1"}}),
              "file               KLD\n"
              "ours         0.1 ± 0.2\n"
              "longer name          1\n");
}

TEST(Table, shows_what_a_terminal_would_obey) {
    EXPECT_EQ(format_table({"a\033[2J", "b"}, {{"x\n\xff", "\xE2\x80\xAE 1"}}),
              "a\\u001b[2J         b\n"
              "x\\n\\xff     \\u202e 1\n");
}

}  // namespace
}  // namespace cerebellum
